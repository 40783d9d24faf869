package sys

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// NSRequest says which namespaces PinNamespaces makes.
type NSRequest struct {
	Net string // path to pin a new network namespace at; "" makes none
	IPC string // likewise IPC
	UTS string // likewise UTS
	// User, if it has a path, is a new user namespace that owns the others. Setup
	// runs in the others, as this process's user.
	User UserNS

	Hostname string       // of the new UTS namespace; "" keeps the node's
	Setup    func() error // runs inside the new namespaces before they are pinned; nil does nothing
}

// NewNetNS makes a network namespace, runs setup in it (nil does nothing) and
// pins it at path. See PinNamespaces.
func NewNetNS(path string, setup func() error) error {
	return PinNamespaces(NSRequest{Net: path, Setup: setup})
}

// PinNamespaces makes new namespaces that live on without a process, because
// each is bind-mounted on a file. Missing folders above the files are made, and
// whatever a crash has left at the paths is replaced. On error nothing is
// pinned.
//
// Net's folder is made a mount point of its own with shared propagation, as
// iproute2 does, so that pins show in other mount namespaces (see ShareDir). For
// IPC and UTS that is the caller's business, once for all sandboxes: a mount
// for each would only make the mount table longer.
func PinNamespaces(req NSRequest) error {
	if req.Net != "" {
		if err := ShareDir(filepath.Dir(req.Net)); err != nil {
			return fmt.Errorf("pin network namespace: %w", err)
		}
	}
	if req.Hostname != "" && req.UTS == "" {
		return errors.New("a host name needs a UTS namespace of its own")
	}
	return onOwnThread(func() error { return pinNamespaces(req) })
}

func pinNamespaces(req NSRequest) error {
	flags, pins := 0, [...]struct {
		kind, path string
		flag       int
	}{
		{"net", req.Net, unix.CLONE_NEWNET},
		{"ipc", req.IPC, unix.CLONE_NEWIPC},
		{"uts", req.UTS, unix.CLONE_NEWUTS},
		{"user", req.User.Path, 0},
	}
	for _, p := range pins {
		if p.path != "" {
			flags |= p.flag
		}
	}
	ns := func(kind string) string { return "/proc/thread-self/ns/" + kind }
	if req.User.Path == "" {
		if err := unix.Unshare(flags); err != nil {
			return fmt.Errorf("make namespaces: %w", err)
		}
	} else {
		m, err := startMember(uintptr(flags), req.User)
		if err != nil {
			return err
		}
		defer m.end()
		if err := m.enter(flags); err != nil {
			return err
		}
		ns = m.ns
	}
	if req.Hostname != "" {
		if err := unix.Sethostname([]byte(req.Hostname)); err != nil {
			return fmt.Errorf("set host name %q: %w", req.Hostname, err)
		}
	}
	if req.Setup != nil {
		if err := req.Setup(); err != nil {
			return fmt.Errorf("set up namespaces: %w", err)
		}
	}
	for i, p := range pins {
		if p.path == "" {
			continue
		}
		err := pin(ns(p.kind), p.path)
		if err == nil {
			continue
		}
		err = fmt.Errorf("pin %s namespace: %w", p.kind, err)
		for _, done := range pins[:i+1] {
			if done.path != "" {
				err = errors.Join(err, Unpin(done.path))
			}
		}
		return err
	}
	return nil
}

// DoInNetNS runs f in the network namespace pinned at path, on a thread that
// ends with f. Goroutines that f starts run in the node's namespace; programs
// that it starts run in the one at path.
func DoInNetNS(path string, f func() error) error {
	return onOwnThread(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
		_ = ns.Close()
		if err != nil {
			return fmt.Errorf("enter network namespace %s: %w", path, err)
		}
		return f()
	})
}

// onOwnThread runs f on an operating system thread that ends with f: a locked
// goroutine that returns without unlocking takes its thread with it. A panic of
// f is the caller's panic.
func onOwnThread(f func() error) error {
	type outcome struct {
		err error
		bug any // what f panicked with
	}
	done := make(chan outcome, 1)
	go func() {
		// What is sent when f ends its goroutine, as testing's FailNow does.
		o := outcome{err: errors.New("function ended its goroutine instead of returning")}
		defer func() {
			if o.bug = recover(); o.bug != nil {
				o.err = nil
			}
			done <- o
		}()
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot end before the program, and it is what
			// /proc/self shows. Keep it busy, so that f lands on another.
			defer runtime.UnlockOSThread()
			o.err = onOwnThread(f)
			return
		}
		o.err = f()
	}()
	o := <-done
	if o.bug != nil {
		panic(o.bug)
	}
	return o.err
}
