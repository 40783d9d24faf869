package e2e

import (
	"fmt"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// BenchmarkSeccomp is what a filter costs: the same container with and without
// the default profile, created and started, and then executed in.
func BenchmarkSeccomp(b *testing.B) {
	n := benchNode(b)
	p := n.benchPod(0, true)
	pod := n.RunPod(p)
	i := 0
	for _, kind := range []cri.SecurityProfile_ProfileType{cri.SecurityProfile_Unconfined, cri.SecurityProfile_RuntimeDefault} {
		b.Run(kind.String(), func(b *testing.B) {
			var create, start, exec time.Duration
			rounds := 0
			for b.Loop() {
				c := n.benchContainer(fmt.Sprintf("c%d", i), "sleep", "1000")
				c.Linux.SecurityContext.Seccomp = &cri.SecurityProfile{ProfileType: kind}
				began := time.Now()
				id := n.CreateContainer(pod, p, c)
				created := time.Now()
				n.StartContainer(id)
				started := time.Now()
				n.Exec(id, "true")
				create, start, exec = create+created.Sub(began), start+started.Sub(created), exec+time.Since(started)
				if _, err := n.Runtime.RemoveContainer(n.Ctx(), &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
					b.Fatal(err)
				}
				i++
				rounds++
			}
			for name, d := range map[string]time.Duration{"create": create, "start": start, "exec": exec} {
				b.ReportMetric(float64(d.Microseconds())/1000/float64(rounds), name+"-ms")
			}
		})
	}
}
