package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
)

// Names of descriptors, in AdoptRequest.FDs and ListItem.FDs.
const (
	FDPid     = "pidfd"
	FDStdout  = "stdout"
	FDStderr  = "stderr"
	FDStdin   = "stdin"
	FDConsole = "console"
)

// ExecProcess is a process that Exec started.
type ExecProcess struct {
	PID     int
	Console *os.File // the pty's master, with TTY; the caller's
	// Done delivers exactly one Exit. With Lost the connection ended before the
	// process did; the monitor, unless it has died, kills the process then.
	Done <-chan Exit
}

// Listed is a container or holder and the descriptors that came with it.
type Listed struct {
	ListItem
	Hold *Hold // never nil; the caller's
}

// Create makes a container up to its Start. The Hold is the caller's. See
// CreateRequest; on error nothing is left behind, but after the end of ctx the
// container may come to be: then Delete it, which waits for that. So does Release
// after Hold.
func (c *Client) Create(ctx context.Context, r CreateRequest) (CreateReply, *Hold, error) {
	var reply CreateReply
	files, err := c.request(ctx, OpCreate, r, nil, &reply)
	if err != nil {
		return CreateReply{}, nil, err
	}
	h, err := newHold(r.FDs(), files)
	if err != nil {
		return CreateReply{}, nil, fmt.Errorf("create container %s: %w", r.ID, err)
	}
	return reply, h, nil
}

// FDs names the descriptors that the reply to r carries, in order.
func (r *CreateRequest) FDs() []string {
	switch {
	case r.TTY:
		return []string{FDPid, FDConsole}
	case r.Stdin:
		return []string{FDPid, FDStdout, FDStderr, FDStdin}
	}
	return []string{FDPid, FDStdout, FDStderr}
}

// Start lets a created container execute its program. See StartRequest.
func (c *Client) Start(ctx context.Context, id string) error {
	_, err := c.request(ctx, OpStart, StartRequest{id}, nil, nil)
	return err
}

// Exec runs one more process in a container. stdio stays the caller's, who can
// close it when Exec returns; nil means /dev/null. With TTY stdio is not used.
//
// A process that starts after ctx has ended is killed: nobody knows of it.
func (c *Client) Exec(ctx context.Context, r ExecRequest, stdio [3]*os.File) (*ExecProcess, error) {
	files, closeNull, err := execFiles(r, stdio)
	if err != nil {
		return nil, err
	}
	defer closeNull()
	// The exit may come right behind the reply, so the place for it is made first.
	k := execKey{r.ID, r.ExecID}
	done := make(chan Exit, 1)
	if err := c.expect(k, done); err != nil {
		return nil, err
	}
	f, err := c.call(ctx, ask{op: OpExec, req: r, files: files, late: func(Frame) { c.killLate(k) }})
	if err != nil {
		c.unexpect(k)
		return nil, err
	}
	p, err := execProcess(r, f)
	if err != nil {
		f.CloseFiles()
		c.unexpect(k)
		c.kill(k) // nobody can use it
		return nil, fmt.Errorf("exec in container %s: %w", r.ID, err)
	}
	p.Done = done
	return p, nil
}

// Attach connects stdio to a container's standard files; nil is a stream that is
// not wanted. The files stay the caller's, who closes them after the call: the
// monitor has copies. See AttachRequest for when it ends.
func (c *Client) Attach(ctx context.Context, r AttachRequest, stdio [3]*os.File) error {
	r.Streams = nil
	var files []*os.File
	for i, name := range [...]string{"stdin", "stdout", "stderr"} {
		if stdio[i] != nil {
			r.Streams, files = append(r.Streams, name), append(files, stdio[i])
		}
	}
	_, err := c.request(ctx, OpAttach, r, files, nil)
	return err
}

// execProcess reads the reply to r. Its file, if any, moves to the result.
func execProcess(r ExecRequest, f Frame) (*ExecProcess, error) {
	var reply ExecReply
	if err := f.Decode(&reply); err != nil {
		return nil, err
	}
	switch {
	case r.TTY && len(f.Files) == 1:
		return &ExecProcess{PID: reply.PID, Console: f.Files[0]}, nil
	case !r.TTY && len(f.Files) == 0:
		return &ExecProcess{PID: reply.PID}, nil
	}
	return nil, fmt.Errorf("monitor protocol: %d descriptors came with the reply, terminal: %t", len(f.Files), r.TTY)
}

// execFiles is what an exec's request carries, and what closes those of them
// that are not the caller's.
func execFiles(r ExecRequest, stdio [3]*os.File) (files []*os.File, done func(), err error) {
	if r.TTY {
		return nil, func() {}, nil
	}
	var null *os.File
	for _, f := range stdio {
		if f == nil && null == nil {
			if null, err = os.OpenFile(os.DevNull, os.O_RDWR, 0); err != nil {
				return nil, nil, fmt.Errorf("exec in container %s: %w", r.ID, err)
			}
		}
		if f == nil {
			f = null
		}
		files = append(files, f)
	}
	return files, func() {
		if null != nil {
			_ = null.Close()
		}
	}, nil
}

func (c *Client) expect(k execKey, done chan Exit) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lost != nil {
		return errkind.Errorf(errkind.Unavailable, "%s: crid-monitor: %w", OpExec, c.lost)
	}
	if _, ok := c.execs[k]; ok {
		return errkind.Errorf(errkind.Exists, "exec %s runs already in container %s", k.execID, k.id)
	}
	c.execs[k] = done
	return nil
}

func (c *Client) unexpect(k execKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, k)
}

// killLate kills an exec whose caller has gone. It is called by the reader,
// which must not write: a monitor that waits for it to read would never read.
func (c *Client) killLate(k execKey) {
	c.wg.Add(1)
	go func() {
		defer c.wg.Done()
		c.kill(k)
	}()
}

// kill kills an exec. Ends with the connection; an error means that either is gone.
func (c *Client) kill(k execKey) {
	_ = c.Signal(context.Background(), SignalRequest{ID: k.id, ExecID: k.execID, Signal: int(syscall.SIGKILL), All: true})
}

// Signal sends a signal. See SignalRequest.
func (c *Client) Signal(ctx context.Context, r SignalRequest) error {
	_, err := c.request(ctx, OpSignal, r, nil, nil)
	return err
}

// Resize sets the size of a terminal. BadState without one.
func (c *Client) Resize(ctx context.Context, r ResizeRequest) error {
	_, err := c.request(ctx, OpResize, r, nil, nil)
	return err
}

// ReopenLog makes the container's log anew at its path. See ReopenLogRequest.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	_, err := c.request(ctx, OpReopenLog, ReopenLogRequest{id}, nil, nil)
	return err
}

// Update changes a container's resources. See UpdateRequest.
func (c *Client) Update(ctx context.Context, r UpdateRequest) (UpdateReply, error) {
	var reply UpdateReply
	_, err := c.request(ctx, OpUpdate, r, nil, &reply)
	return reply, err
}

// Delete kills and removes a container, and its exit from the journal.
// Idempotent. See DeleteRequest.
func (c *Client) Delete(ctx context.Context, r DeleteRequest) error {
	c.cutShort(ctx, r.ID)
	_, err := c.request(ctx, OpDelete, r, nil, nil)
	return err
}

// Hold starts a sandbox's PID namespace. The file is its holder's pidfd, and the
// caller's. Idempotent. See HoldRequest.
func (c *Client) Hold(ctx context.Context, r HoldRequest) (HoldReply, *os.File, error) {
	var reply HoldReply
	files, err := c.request(ctx, OpHold, r, nil, &reply)
	if err != nil {
		return HoldReply{}, nil, err
	}
	h, err := newHold([]string{FDPid}, files)
	if err != nil {
		return HoldReply{}, nil, fmt.Errorf("hold sandbox %s: %w", r.ID, err)
	}
	return reply, h.PIDFD, nil
}

// Release ends a sandbox's PID namespace. Idempotent. See ReleaseRequest.
func (c *Client) Release(ctx context.Context, r ReleaseRequest) error {
	_, err := c.request(ctx, OpRelease, r, nil, nil)
	return err
}

// Adopt hands a container or holder to a monitor that was started after the
// one that made it had died. h stays the caller's; r.FDs is set from it.
func (c *Client) Adopt(ctx context.Context, r AdoptRequest, h *Hold) error {
	var files []*os.File
	r.FDs, files = h.split()
	_, err := c.request(ctx, OpAdopt, r, files, nil)
	return err
}

// List is all containers and holders. Their descriptors are the caller's.
func (c *Client) List(ctx context.Context) ([]Listed, error) {
	var reply ListReply
	files, err := c.request(ctx, OpList, ListRequest{}, nil, &reply)
	if err != nil {
		return nil, err
	}
	all := make([]Listed, 0, len(reply.Items))
	for _, item := range reply.Items {
		n := min(len(item.FDs), len(files))
		h, herr := newHold(item.FDs, files[:n])
		files = files[n:]
		err = errors.Join(err, herr)
		all = append(all, Listed{item, h})
	}
	if len(files) > 0 {
		closeAll(files)
		err = errors.Join(err, fmt.Errorf("monitor protocol: %d descriptors more than named", len(files)))
	}
	if err != nil {
		for _, l := range all {
			l.Hold.Close()
		}
		return nil, fmt.Errorf("list containers: %w", err)
	}
	return all, nil
}

// Ack says that the exit of a container has been written down. Idempotent.
func (c *Client) Ack(ctx context.Context, id string) error {
	_, err := c.request(ctx, OpAck, AckRequest{id}, nil, nil)
	return err
}

// Dump asks for figures about the monitor itself.
func (c *Client) Dump(ctx context.Context) (DumpReply, error) {
	var reply DumpReply
	files, err := c.request(ctx, OpDump, DumpRequest{}, nil, &reply)
	closeAll(files)
	return reply, err
}

// Shutdown ends a monitor that holds nothing. BadState otherwise.
func (c *Client) Shutdown(ctx context.Context) error {
	_, err := c.request(ctx, OpShutdown, ShutdownRequest{}, nil, nil)
	return err
}

// request is call with the reply's body read into reply. With nil the reply's
// files are closed, else they are the caller's.
func (c *Client) request(ctx context.Context, op string, req any, files []*os.File, reply any) ([]*os.File, error) {
	f, err := c.call(ctx, ask{op: op, req: req, files: files})
	if err != nil {
		return nil, err
	}
	if reply == nil {
		f.CloseFiles()
		return nil, nil
	}
	if err := f.Decode(reply); err != nil {
		f.CloseFiles()
		return nil, err
	}
	return f.Files, nil
}

// newHold gives files their names. It takes ownership of files, also on error.
// What has a name that is not known here is closed: a newer monitor's.
func newHold(names []string, files []*os.File) (*Hold, error) {
	if len(names) != len(files) {
		closeAll(files)
		return nil, fmt.Errorf("monitor protocol: %d descriptors came, want %d: %q", len(files), len(names), names)
	}
	h := new(Hold)
	places := h.places()
	for i, name := range names {
		place := places[name]
		if place == nil || *place != nil {
			_ = files[i].Close()
			continue
		}
		// crid must not wake up for each line that a container writes.
		f, err := sys.Passive(files[i])
		if err != nil {
			closeAll(files[i+1:])
			h.Close()
			return nil, err
		}
		*place = f
	}
	return h, nil
}

// split is what h holds, by name, in the order in which descriptors travel.
func (h *Hold) split() (names []string, files []*os.File) {
	if h == nil {
		return nil, nil
	}
	places := h.places()
	for _, name := range []string{FDPid, FDStdout, FDStderr, FDStdin, FDConsole} {
		if f := *places[name]; f != nil {
			names, files = append(names, name), append(files, f)
		}
	}
	return names, files
}

func (h *Hold) places() map[string]**os.File {
	return map[string]**os.File{
		FDPid: &h.PIDFD, FDStdout: &h.Stdout, FDStderr: &h.Stderr, FDStdin: &h.Stdin, FDConsole: &h.Console,
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
