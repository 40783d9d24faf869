// Package filter keeps compiled seccomp filters, so that a container or exec whose
// filter is known does not pay for its compilation, which takes longer than all
// the rest of a start (docs/decisions has the figures).
//
// libcontainer compiles a container's filter in the container's first process, and
// once more for each exec, with libseccomp; its interface takes rules, no
// program. So the cache is between it and libseccomp. A recording is the calls by
// which libcontainer has made a filter, and the program that came out. It is made
// by Record in a process of its own, which only runs libcontainer's code on the
// rules. A process that has been given a recording by Use makes its filter with the
// same libcontainer code; if it makes exactly the recorded calls, it gets the
// recorded program, else libseccomp compiles. What libcontainer does with the
// program then, as adding ENOSYS for unknown system calls, is as ever.
package filter

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// seals make a recording safe to hand to a process in a container.
	seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	// maxKept bounds the recordings: nodes have a handful of profiles. Beyond it all
	// start anew.
	maxKept = 64
	// maxRecording is far above what the kernel takes: 4096 instructions of 8
	// bytes, and the calls for them.
	maxRecording = 4 << 20
	// recordLimit is for a machine that can hardly move: it takes 50 ms.
	recordLimit = 30 * time.Second
)

// Key names a filter: the rules and what else is in its configuration.
type Key [sha256.Size]byte

// KeyOf is the key of a configuration in libcontainer's JSON.
func KeyOf(config []byte) Key { return sha256.Sum256(config) }

// Cache makes recordings and keeps them for as long as the monitor runs. Methods
// may be called concurrently.
type Cache struct {
	// Command starts a process that calls Record.
	Command func(ctx context.Context) *exec.Cmd

	mu   sync.Mutex
	kept map[Key]*entry // +checklocks:mu
}

type entry struct {
	done chan struct{} // closed when data is set
	data []byte        // nil when it could not be made
}

// Get is the recording for key, made now if it is not there; config is asked for
// the configuration then. The caller closes it. It is nil where there can be none:
// filters are compiled without as well.
func (c *Cache) Get(ctx context.Context, key Key, config func() ([]byte, error)) *os.File {
	data, err := c.get(ctx, key, config)
	var f *os.File
	if err == nil && data != nil {
		// Kept as bytes: a file for each would be descriptors that stay.
		f, err = sealed(data)
	}
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not keep a compiled seccomp filter, it is compiled for each container")
	}
	return f
}

func (c *Cache) get(ctx context.Context, key Key, config func() ([]byte, error)) (data []byte, err error) {
	c.mu.Lock()
	e, known := c.kept[key]
	if !known {
		if c.kept == nil || len(c.kept) >= maxKept {
			c.kept = map[Key]*entry{}
		}
		e = &entry{done: make(chan struct{})}
		c.kept[key] = e
	}
	c.mu.Unlock()
	if known {
		<-e.done
		return e.data, nil // whose making has failed has said so
	}
	defer close(e.done)
	if e.data, err = c.make(ctx, config); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.kept[key] == e {
			delete(c.kept, key) // the next one tries again
		}
	}
	return e.data, err
}

func (c *Cache) make(ctx context.Context, config func() ([]byte, error)) ([]byte, error) {
	data, err := config()
	if err != nil {
		return nil, fmt.Errorf("record seccomp filter: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordLimit)
	defer cancel()
	cmd := c.Command(ctx)
	var out, text bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), &out, &text
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("record seccomp filter: %w: %s", err, strings.TrimSpace(text.String()))
	}
	if out.Len() == 0 || out.Len() > maxRecording {
		return nil, fmt.Errorf("record seccomp filter: %d bytes came", out.Len())
	}
	return bytes.Clone(out.Bytes()), nil
}

// sealed is data in memory that nobody can change.
func sealed(data []byte) (*os.File, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("crid-filter", flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("crid-filter", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("hand over seccomp filter: %w", err)
	}
	f := os.NewFile(uintptr(fd), "crid-filter")
	_, err = f.Write(data)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("hand over seccomp filter: %w", err)
	}
	return f, nil
}

// Use has this process take its filter from the recording behind descriptor fd. If
// that is none, it does nothing. In any case the next program executed does not
// get the descriptor.
func Use(fd int) {
	unix.CloseOnExec(fd)
	have, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err != nil || have&seals != seals {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Size == 0 || st.Size > maxRecording {
		return
	}
	// For as long as the process runs this program.
	if data, err := unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE); err == nil {
		use(data)
	}
}

// Record reads a configuration from standard input, has load make the filter, and
// writes the recording to standard output. It does not return: where load comes
// to loading the filter into the kernel, the process ends.
func Record(load func(config []byte) error) {
	config, err := io.ReadAll(os.Stdin)
	if err == nil {
		record(int(os.Stdout.Fd()))
		err = load(config)
	}
	if err == nil {
		err = errors.New("the filter was loaded instead of recorded")
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
