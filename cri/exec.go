package cri

import (
	"context"
	"math"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/cri/stream"
)

// maxOutput is what both outputs of an ExecSync may have together, so that the
// response fits into the 16 MiB that kubelet takes in one message.
const maxOutput = 16<<20 - 4<<10

// ExecSync runs a command to its end. An exit code other than 0 is a result, not
// an error; an error says that the command could not be run, or not to its end.
func (s *Server) ExecSync(ctx context.Context, r *v1.ExecSyncRequest) (*v1.ExecSyncResponse, error) {
	var d decoder
	d.check("container_id", badID(r.GetContainerId()))
	args := d.command(r.GetCmd())
	timeout := d.seconds("timeout", r.GetTimeout())
	if err := d.err(); err != nil {
		return nil, err
	}
	res, err := s.o.Sandboxes.ExecSync(ctx, r.GetContainerId(), args, timeout)
	if err != nil {
		return nil, err
	}
	stdout, stderr := cut(res.Stdout, res.Stderr, maxOutput)
	return &v1.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: int32(res.Code)}, nil
}

func (d *decoder) command(cmd []string) []string {
	args := d.args("cmd", cmd)
	if len(args) == 0 || args[0] == "" {
		d.reject("cmd", "must name a program")
	}
	return args
}

// Exec answers with the URL of an exec, which begins when a client connects.
func (s *Server) Exec(_ context.Context, r *v1.ExecRequest) (*v1.ExecResponse, error) {
	var d decoder
	d.check("container_id", badID(r.GetContainerId()))
	args := d.command(r.GetCmd())
	w := d.wanted(r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	if err := d.err(); err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.MayExec(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.o.Streams.ExecURL(id, args, w)
	return &v1.ExecResponse{Url: url}, err
}

// Attach answers with the URL of an attachment to a container.
func (s *Server) Attach(_ context.Context, r *v1.AttachRequest) (*v1.AttachResponse, error) {
	var d decoder
	d.check("container_id", badID(r.GetContainerId()))
	w := d.wanted(r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())
	if err := d.err(); err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.MayAttach(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	url, err := s.o.Streams.AttachURL(id, w)
	return &v1.AttachResponse{Url: url}, err
}

// PortForward answers with the URL of connections to ports of a pod. Most clients
// name the ports when they connect.
func (s *Server) PortForward(_ context.Context, r *v1.PortForwardRequest) (*v1.PortForwardResponse, error) {
	var d decoder
	d.check("pod_sandbox_id", badID(r.GetPodSandboxId()))
	for _, port := range r.GetPort() {
		if port < 1 || port > math.MaxUint16 {
			d.reject("port", "has %d, must be between 1 and 65535", port)
		}
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	id, err := s.o.Sandboxes.MayForward(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.o.Streams.PortForwardURL(id, r.GetPort())
	return &v1.PortForwardResponse{Url: url}, err
}

// wanted checks the streams of an exec or attachment.
func (d *decoder) wanted(stdin, stdout, stderr, tty bool) stream.Wanted {
	if !stdin && !stdout && !stderr {
		d.reject("stdin, stdout, stderr", "at least one must be true")
	}
	if tty && stderr {
		d.reject("stderr", "must be false with tty: a terminal has one output, which is stdout")
	}
	return stream.Wanted{Stdin: stdin, Stdout: stdout, Stderr: stderr, TTY: tty}
}

// cut shortens a and b to limit bytes together. Neither is cut below half of it.
func cut(a, b []byte, limit int) ([]byte, []byte) {
	if len(a)+len(b) > limit {
		b = b[:min(len(b), max(limit-len(a), limit/2))]
		a = a[:min(len(a), limit-len(b))]
	}
	return a, b
}

// seconds turns CRI's seconds into a duration. Users ask for grace periods that
// are longer than a Duration can say, and mean for ever.
func (d *decoder) seconds(field string, n int64) time.Duration {
	if n < 0 {
		d.reject(field, "is %d, must not be negative", n)
		return 0
	}
	return time.Duration(min(n, math.MaxInt64/int64(time.Second))) * time.Second
}
