package kubelet

import "testing"

// The shortest life of a pod: also what is run where everything is slow, in the VM.
func TestHello(t *testing.T) {
	k := newKubelet(t, options{})
	k.run("hello", `
		containers:
		- name: main
		  image: IMAGE
		  command: [sh, -c, "echo hello; sleep 1000"]
	`)
	k.await("hello", "is ready", ready)
	if got := k.logs("hello", "main"); got != "hello\n" {
		t.Errorf("log is %q", got)
	}
	if got := k.exec("hello", "main", "echo", "exec"); got != "exec\n" {
		t.Errorf("exec says %q", got)
	}
	k.remove("hello")
}
