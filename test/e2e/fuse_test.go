package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"syscall"
	"testing"
)

// Of linux/fuse.h: what a file system must answer to be mounted and looked into.
const (
	fuseLookup    = 1
	fuseForget    = 2
	fuseGetattr   = 3
	fuseInit      = 26
	fuseInterrupt = 36
	fuseBatch     = 42 // FORGET of many
)

// hangingMount mounts a file system at dir that answers for its root and for
// nothing else: who looks for a file in it waits in the kernel, and not even
// SIGKILL ends that. The function that it returns lets all who wait go, with an error.
func hangingMount(t *testing.T, dir string) (release func()) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not os.OpenFile: closing must not wait for the read under way.
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this kernel has no FUSE: %v", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0,allow_other", fd)
	if err := syscall.Mount("crid-e2e-hang", dir, "fuse", syscall.MS_NOSUID|syscall.MS_NODEV, options); err != nil {
		_ = syscall.Close(fd)
		t.Skipf("this kernel has no FUSE: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		serveHanging(fd)
	}()
	released := false
	release = func() {
		if released {
			return
		}
		released = true
		// Ends the connection: all requests fail, and so does the server's read.
		if err := syscall.Unmount(dir, syscall.MNT_FORCE|syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
		<-ended
		_ = syscall.Close(fd)
	}
	t.Cleanup(release)
	return release
}

// serveHanging answers until the mount is gone.
func serveHanging(fd int) {
	buf := make([]byte, 1<<17)
	for {
		n, err := syscall.Read(fd, buf)
		if err == syscall.EINTR || err == syscall.ENOENT {
			continue
		}
		if err != nil || n < 40 {
			return
		}
		var body []byte
		code := -int32(syscall.ENOSYS)
		switch binary.NativeEndian.Uint32(buf[4:]) {
		case fuseLookup, fuseForget, fuseInterrupt, fuseBatch:
			continue // LOOKUP is what hangs; the others have no answer
		case fuseInit:
			body, code = make([]byte, 64), 0
			binary.NativeEndian.PutUint32(body[0:], 7)
			binary.NativeEndian.PutUint32(body[4:], 31)
			binary.NativeEndian.PutUint32(body[20:], 1<<16) // most that is written at once
		case fuseGetattr:
			body, code = make([]byte, 16+88), 0
			attr := body[16:]
			binary.NativeEndian.PutUint64(attr[0:], 1)                      // inode
			binary.NativeEndian.PutUint32(attr[60:], syscall.S_IFDIR|0o755) // mode
			binary.NativeEndian.PutUint32(attr[64:], 2)                     // links
		}
		out := make([]byte, 16, 16+len(body))
		binary.NativeEndian.PutUint32(out[0:], uint32(16+len(body)))
		binary.NativeEndian.PutUint32(out[4:], uint32(code))
		copy(out[8:], buf[8:16]) // which request
		_, _ = syscall.Write(fd, append(out, body...))
	}
}
