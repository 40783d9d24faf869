package kubelet

import (
	"fmt"
)

// Pods are not evicted here: pods of files are critical for kubelet, and it does not
// evict those (TestEviction has others). What is shown is what kubelet does with
// crid's figures until then: it finds the pressure, collects what nobody uses, looks
// again, and ranks the pods.

// diskPressure: too little room on the disk of the images. Those that nobody uses go,
// and kubelet is content with what it finds then.
func (g *garbage) diskPressure() {
	for _, name := range []string{"unused-5", "unused-6"} {
		g.pull(name)
	}
	before := len(g.kubeletLog())
	available, _ := g.room(g.root)
	g.restart(map[string]any{"evictionHard": map[string]string{"imagefs.available": fmt.Sprint(available + bulk + bulk/2)}})
	g.awaitImages(0)
	g.collected("space", 2)
	g.logged(before, `node conditions - observed" nodeCondition=\["DiskPressure"\]`, `able to reduce resource pressure without evicting pods`)
	g.untouched("uses", "main", 0)
	g.untouched("restarts", "main", 3)
}

// memoryPressure: kubelet ranks pods by how much more memory they use than they have
// asked for, as crid says.
func (g *garbage) memoryPressure() {
	g.run("big", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "dd if=/dev/zero of=/memory/f bs=1M count=60 && touch /ready && exec sleep 1000"]
			readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}
			resources: {requests: {memory: 5Mi}}
			volumeMounts: [{name: memory, mountPath: /memory}]
		volumes:
		- {name: memory, emptyDir: {medium: Memory}}
	`)
	g.run("modest", `
		containers:
		- name: main
			image: IMAGE
			command: [sleep, "1000"]
			resources: {requests: {memory: 20Mi}}
	`)
	for _, name := range []string{"big", "modest"} {
		g.await(name, "is ready", ready)
	}
	before := len(g.kubeletLog())
	// What is left of the machine for pods is one percent: all of these fit.
	g.restart(map[string]any{"evictionHard": map[string]string{"memory.available": "99%"}})
	g.logged(before,
		`node conditions - observed" nodeCondition=\["MemoryPressure"\]`,
		`attempting to reclaim" resourceName="memory"`,
		`pods ranked for eviction" pods=\["default/big-node",("default/(uses|restarts)-node",){2}"default/modest-node"\]`,
		`cannot evict a critical pod" pod="default/big-node"`,
	)
	g.awaitMetric(`kubelet_eviction_stats_age_seconds_count{eviction_signal="memory.available"}`) // the age of the figures that it used
	for name, restarts := range map[string]int32{"big": 0, "modest": 0, "uses": 0, "restarts": 3} {
		g.untouched(name, "main", restarts)
	}
}
