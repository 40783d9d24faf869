package cri

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/internal/errkind"
)

func (f *fakeNode) MayExec(id string) (string, error)    { return id + "-whole", f.err }
func (f *fakeNode) MayAttach(id string) (string, error)  { return id + "-whole", f.err }
func (f *fakeNode) MayForward(id string) (string, error) { return id + "-whole", f.err }

func (f *fakeNode) ExecURL(id string, args []string, w stream.Wanted) (string, error) {
	return "exec", f.call(id, args, w)
}

func (f *fakeNode) AttachURL(id string, w stream.Wanted) (string, error) {
	return "attach", f.call(id, w)
}

func (f *fakeNode) PortForwardURL(id string, ports []int32) (string, error) {
	return "portforward", f.call(id, ports)
}

func TestStreamURLs(t *testing.T) {
	node := &fakeNode{}
	s := newTestServer(t, node)
	e, err := s.Exec(t.Context(), &v1.ExecRequest{ContainerId: "c", Cmd: []string{"sh"}, Stdin: true, Stdout: true, Tty: true})
	if err != nil || e.Url != "exec" || node.got[0] != "c-whole" || node.got[2] != (stream.Wanted{Stdin: true, Stdout: true, TTY: true}) {
		t.Errorf("Exec = %v, %v, asked for %v", e, err, node.got)
	}
	a, err := s.Attach(t.Context(), &v1.AttachRequest{ContainerId: "c", Stderr: true})
	if err != nil || a.Url != "attach" || node.got[0] != "c-whole" || node.got[1] != (stream.Wanted{Stderr: true}) {
		t.Errorf("Attach = %v, %v, asked for %v", a, err, node.got)
	}
	p, err := s.PortForward(t.Context(), &v1.PortForwardRequest{PodSandboxId: "p", Port: []int32{1, 65535}})
	if err != nil || p.Url != "portforward" || node.got[0] != "p-whole" {
		t.Errorf("PortForward = %v, %v, asked for %v", p, err, node.got)
	}
}

func TestBadStreamRequests(t *testing.T) {
	s := newTestServer(t, &fakeNode{})
	exec := func(r *v1.ExecRequest) error { _, err := s.Exec(t.Context(), r); return err }
	attach := func(r *v1.AttachRequest) error { _, err := s.Attach(t.Context(), r); return err }
	forward := func(r *v1.PortForwardRequest) error { _, err := s.PortForward(t.Context(), r); return err }
	cmd := []string{"sh"}
	for _, test := range []struct {
		name string
		err  error
		want string // in the text
	}{
		{"exec without a stream", exec(&v1.ExecRequest{ContainerId: "c", Cmd: cmd}), "at least one must be true"},
		{"exec with tty and stderr", exec(&v1.ExecRequest{ContainerId: "c", Cmd: cmd, Tty: true, Stdout: true, Stderr: true}), "stderr: must be false with tty"},
		{"exec of nothing", exec(&v1.ExecRequest{ContainerId: "c", Stdout: true}), "cmd: must name a program"},
		{"exec with a NUL", exec(&v1.ExecRequest{ContainerId: "c", Cmd: []string{"sh", "a\x00b"}, Stdout: true}), "cmd"},
		{"attach without a stream", attach(&v1.AttachRequest{ContainerId: "c", Tty: true}), "at least one must be true"},
		{"attach with tty and stderr", attach(&v1.AttachRequest{ContainerId: "c", Tty: true, Stderr: true}), "stderr: must be false with tty"},
		{"port 0", forward(&v1.PortForwardRequest{PodSandboxId: "p", Port: []int32{80, 0}}), "port: has 0"},
		{"port 65536", forward(&v1.PortForwardRequest{PodSandboxId: "p", Port: []int32{65536}}), "port: has 65536"},
	} {
		if status.Code(test.err) != codes.InvalidArgument || !strings.Contains(test.err.Error(), test.want) {
			t.Errorf("%s = %v, want InvalidArgument with %q", test.name, test.err, test.want)
		}
	}
	stopped := newTestServer(t, &fakeNode{err: errkind.Errorf(errkind.BadState, "it is exited, not running")})
	if _, err := stopped.Attach(t.Context(), &v1.AttachRequest{ContainerId: "c", Stdout: true}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("Attach to what has exited = %v, want FailedPrecondition", err)
	}
}
