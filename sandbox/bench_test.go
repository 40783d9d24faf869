package sandbox_test

import (
	"fmt"
	"testing"

	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// BenchmarkLife is the manager's own part of a pod's life: records and locks,
// on parts that cost nothing.
func BenchmarkLife(b *testing.B) {
	b.Setenv("CRID_VERIFY", "")
	n := sandboxtest.New(b)
	for b.Loop() {
		l := &life{n: n}
		for _, step := range l.steps() {
			if err := step(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	}
}

// BenchmarkList is ListPodSandbox and ListContainers at 500 pods.
func BenchmarkList(b *testing.B) {
	b.Setenv("CRID_VERIFY", "")
	n := sandboxtest.New(b)
	for i := range 500 {
		pod, err := n.Manager.Run(b.Context(), sandboxtest.Pod(fmt.Sprint(i)))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := n.Manager.Create(b.Context(), string(pod), sandboxtest.Container("main")); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if len(n.Manager.Sandboxes()) != 500 || len(n.Manager.Containers()) != 500 {
			b.Fatal("not all are listed")
		}
	}
}
