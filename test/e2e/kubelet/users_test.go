package kubelet

import (
	"fmt"
	"path/filepath"
	"syscall"
)

// userNamespaces: the ids of a pod with hostUsers: false are its own, and the
// volumes have the owners that they would have without: inside, and on the host.
func (k *kubelet) userNamespaces() {
	const idsPerPod = 65536
	firsts, names := map[int]string{}, []string{"users-a", "users-b"}
	for _, name := range names {
		k.run(name, `
			hostUsers: false
			securityContext: {fsGroup: 2000}
			containers:
			- name: root
				image: IMAGE
				command: [sleep, "1000"]
				volumeMounts: &mounts
				- {name: disk, mountPath: /disk}
				- {name: memory, mountPath: /memory}
				- {name: part, mountPath: /part, subPath: p}
				- {name: info, mountPath: /info}
				- {name: owned, mountPath: /owned}
				- {name: data, mountPath: /data}
			- name: user
				image: IMAGE
				command: [sleep, "1000"]
				securityContext: {runAsUser: 1000, runAsGroup: 1000}
				volumeMounts: *mounts
			volumes:
			- {name: disk, emptyDir: {}}
			- {name: memory, emptyDir: {medium: Memory}}
			- {name: part, emptyDir: {}}
			- {name: info, downwardAPI: {defaultMode: 0440, items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
			- {name: owned, hostPath: {path: DIR/host/owned, type: File}}
			- {name: data, image: {reference: registry.k8s.io/e2e/data:1}}
		`)
	}
	for _, name := range names {
		p := k.await(name, "is ready", ready)
		for _, c := range []string{"root", "user"} {
			var inside, first, length [2]int
			maps := k.sh(name, c, "cat /proc/self/uid_map /proc/self/gid_map")
			if _, err := fmt.Sscan(maps, &inside[0], &first[0], &length[0], &inside[1], &first[1], &length[1]); err != nil {
				k.t.Fatalf("%s, %s: maps are %q: %v", name, c, maps, err)
			}
			if inside != [2]int{} || first[0] != first[1] || first[0] < idsPerPod || first[0]%idsPerPod != 0 || length != [2]int{idsPerPod, idsPerPod} {
				k.t.Errorf("%s, %s: maps are %q", name, c, maps)
			}
			if other := firsts[first[0]]; other != "" && other != name {
				k.t.Errorf("%s and %s share the ids from %d", name, other, first[0])
			}
			firsts[first[0]] = name
		}
		k.sh(name, "root", "touch /disk/root /memory/root /part/root")
		k.sh(name, "user", "touch /disk/user /memory/user /part/user")
		want := `0:2000 /disk/root
1000:2000 /disk/user
0:2000 /memory/root
1000:2000 /memory/user
0:2000 /part/root
1000:2000 /part/user
0:0 /owned
0:0 /data/conf
` + name + "-" + nodeName + " root's"
		for _, c := range []string{"root", "user"} {
			got := k.sh(name, c, "stat -c '%u:%g %n' /disk/* /memory/* /part/* /owned /data/conf; echo $(cat /info/name) $(cat /owned)")
			if got != want {
				k.t.Errorf("%s, %s sees\n%s\nwant\n%s", name, c, got, want)
			}
		}
		// The volume's own files carry the ids that the pod sees: the mount into it translates.
		dir := k.path("kubelet", "pods", p.Annotations["kubernetes.io/config.hash"], "volumes", "kubernetes.io~empty-dir")
		for file, uid := range map[string]uint32{"disk/root": 0, "disk/user": 1000, "memory/root": 0, "memory/user": 1000, "part/p/root": 0} {
			var s syscall.Stat_t
			if err := syscall.Stat(filepath.Join(dir, file), &s); err != nil || s.Uid != uid || s.Gid != 2000 {
				k.t.Errorf("%s: %s is of %d:%d on the host, want %d:2000 (%v)", name, file, s.Uid, s.Gid, uid, err)
			}
		}
	}
}
