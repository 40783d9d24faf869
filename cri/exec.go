package cri

import (
	"context"
	"math"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxOutput is what both outputs of an ExecSync may have together, so that the
// response fits into the 16 MiB that kubelet takes in one message.
const maxOutput = 16<<20 - 4<<10

// ExecSync runs a command to its end. An exit code other than 0 is a result, not
// an error; an error says that the command could not be run, or not to its end.
func (s *Server) ExecSync(ctx context.Context, r *v1.ExecSyncRequest) (*v1.ExecSyncResponse, error) {
	var d decoder
	d.check("container_id", badID(r.GetContainerId()))
	args := d.args("cmd", r.GetCmd())
	if len(args) == 0 || args[0] == "" {
		d.reject("cmd", "must name a program")
	}
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
