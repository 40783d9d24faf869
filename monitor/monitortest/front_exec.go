package monitortest

import (
	"context"
	"io"
	"os"
	"syscall"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// Exec is *monitor.Client's. Options.Exec runs with duplicates of stdio.
func (fr *Front) Exec(ctx context.Context, r monitor.ExecRequest, stdio [3]*os.File) (*monitor.ExecProcess, error) {
	f := fr.f
	return run(ctx, fr, monitor.OpExec, r.ID, func() (*monitor.ExecProcess, error) {
		c, err := f.findLocked(r.ID)
		if err != nil {
			return nil, err
		}
		if c.state == exited {
			return nil, errkind.Errorf(errkind.BadState, "container %s is %s", r.ID, c.state)
		}
		if c.execs[r.ExecID] != nil {
			return nil, errkind.Errorf(errkind.Exists, "exec %s runs already in container %s", r.ExecID, r.ID)
		}
		own, console, err := execStdio(r.TTY, stdio)
		if err != nil {
			return nil, err
		}
		if console != nil {
			f.handed = append(f.handed, handed{console, "open console of exec " + r.ExecID + " of " + r.ID})
		}
		done := make(chan monitor.Exit, 1)
		x := &execution{front: fr, done: done, killed: make(chan struct{})}
		c.execs[r.ExecID] = x
		f.lastPID++
		f.running.Go(func() { f.runExec(r, x, own) })
		// A program that is killed closes its files, whatever it waits for.
		f.running.Go(func() {
			<-x.killed
			closeFiles(own[:]...)
		})
		return &monitor.ExecProcess{PID: f.lastPID, Console: console, Done: done}, nil
	}, func(p *monitor.ExecProcess) {
		// Nobody knows of it: it is killed, as by a Client.
		if c := f.containers[r.ID]; c != nil {
			f.endExecLocked(c, r.ExecID, 128+9)
		}
		closeFiles(p.Console)
	})
}

// runExec runs the exec's program and ends the exec with its code, unless it was
// ended from outside.
func (f *Fake) runExec(r monitor.ExecRequest, x *execution, stdio [3]*os.File) {
	code := 0
	if f.o.Exec != nil {
		code = f.o.Exec(&Exec{r, Process{stdio[0], stdio[1], stdio[2], x.killed}})
	}
	closeFiles(stdio[:]...)
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.containers[r.ID]; c != nil && c.execs[r.ExecID] == x {
		f.endExecLocked(c, r.ExecID, code)
	}
}

// execStdio is the program's own stdio, and with tty the caller's end of it.
func execStdio(tty bool, stdio [3]*os.File) (own [3]*os.File, console *os.File, err error) {
	if tty {
		// A socket pair is enough of a terminal here: both ways on one descriptor.
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC|syscall.SOCK_NONBLOCK, 0)
		if err != nil {
			return own, nil, err
		}
		f := os.NewFile(uintptr(fds[1]), "terminal")
		return [3]*os.File{f, f, f}, os.NewFile(uintptr(fds[0]), "console"), nil
	}
	for i, f := range stdio {
		if own[i], err = dup(f); err != nil {
			closeFiles(own[:]...)
			return own, nil, err
		}
	}
	return own, nil, nil
}

// dup duplicates f, or opens /dev/null for nil.
func dup(f *os.File) (*os.File, error) {
	if f == nil {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	return sys.Dup(f)
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Hold is *monitor.Client's.
func (fr *Front) Hold(ctx context.Context, r monitor.HoldRequest) (monitor.HoldReply, *os.File, error) {
	type made struct {
		pid  int
		file *os.File
	}
	f := fr.f
	m, err := run(ctx, fr, monitor.OpHold, r.ID, func() (made, error) {
		pid := f.holders[r.ID]
		if pid == 0 {
			f.lastPID++
			pid = f.lastPID
		}
		file, err := f.handLocked(r.ID, monitor.FDPid)
		if err != nil {
			return made{}, err
		}
		f.holders[r.ID] = pid
		return made{pid, file}, nil
	}, func(m made) { closeFiles(m.file) })
	return monitor.HoldReply{PID: m.pid}, m.file, err
}

// Release is *monitor.Client's.
func (fr *Front) Release(ctx context.Context, r monitor.ReleaseRequest) error {
	return fr.do(ctx, monitor.OpRelease, r.ID, func() error {
		delete(fr.f.holders, r.ID)
		delete(fr.f.lostHolds, r.ID)
		return nil
	})
}

// Adopt is *monitor.Client's. Only what was there at a Crash can be adopted.
func (fr *Front) Adopt(ctx context.Context, r monitor.AdoptRequest, h *monitor.Hold) error {
	f := fr.f
	return fr.do(ctx, monitor.OpAdopt, r.ID, func() error {
		switch {
		case h == nil || h.PIDFD == nil:
			return errkind.Errorf(errkind.Invalid, "adopt %s: without its pidfd", r.ID)
		case f.containers[r.ID] != nil || f.holders[r.ID] != 0:
			return errkind.Errorf(errkind.Exists, "adopt %s: it is known already", r.ID)
		case r.Holder && f.lostHolds[r.ID] != 0:
			f.holders[r.ID] = f.lostHolds[r.ID]
			delete(f.lostHolds, r.ID)
			return nil
		}
		c := f.orphans[r.ID]
		if c == nil || r.Holder {
			return errkind.Errorf(errkind.NotFound, "adopt %s: no such process", r.ID)
		}
		delete(f.orphans, r.ID)
		f.containers[r.ID] = c
		if c.state == exited && c.exit.Lost {
			f.endLocked(c, *c.exit)
		}
		return nil
	})
}

// List is *monitor.Client's.
func (fr *Front) List(ctx context.Context) ([]monitor.Listed, error) {
	f := fr.f
	return run(ctx, fr, monitor.OpList, "", f.listLocked, func(all []monitor.Listed) {
		for _, l := range all {
			l.Hold.Close()
		}
	})
}

func (f *Fake) listLocked() ([]monitor.Listed, error) {
	all := make([]monitor.Listed, 0, len(f.containers)+len(f.holders))
	add := func(item monitor.ListItem) error {
		h, err := f.holdLocked(item.ID, item.FDs)
		if err == nil {
			all = append(all, monitor.Listed{ListItem: item, Hold: h})
		}
		return err
	}
	for id, c := range f.containers {
		item := monitor.ListItem{ID: id, PID: c.pid, Started: c.started, FDs: c.fdsLocked()}
		if c.exit != nil {
			e := *c.exit
			item.Exit = &e
		}
		if err := add(item); err != nil {
			return nil, err
		}
	}
	for id, pid := range f.holders {
		if err := add(monitor.ListItem{ID: id, PID: pid, Holder: true, FDs: []string{monitor.FDPid}}); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// Dump is *monitor.Client's.
func (fr *Front) Dump(ctx context.Context) (monitor.DumpReply, error) {
	f := fr.f
	return run(ctx, fr, monitor.OpDump, "", func() (monitor.DumpReply, error) {
		d := monitor.DumpReply{Build: "fake", PID: fr.Peer().PID, Containers: len(f.containers), Holders: len(f.holders)}
		for _, c := range f.containers {
			d.Execs += len(c.execs)
		}
		return d, nil
	}, func(monitor.DumpReply) {})
}

// Shutdown is *monitor.Client's.
func (fr *Front) Shutdown(ctx context.Context) error {
	f := fr.f
	err := fr.do(ctx, monitor.OpShutdown, "", func() error {
		if n := len(f.containers) + len(f.holders); n > 0 {
			return errkind.Errorf(errkind.BadState, "the monitor holds %d containers and sandboxes", n)
		}
		return nil
	})
	if err == nil {
		f.loseFronts(io.EOF)
	}
	return err
}
