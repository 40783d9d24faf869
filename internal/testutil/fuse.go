package testutil

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// FUSE is a file system whose server is in the test, and may stop answering like
// that of a network mount that is gone.
type FUSE struct {
	t    testing.TB
	dir  string
	file *os.File
	done chan struct{} // the server has ended
}

// MountFUSE mounts a file system, an empty folder, at dir. It answers until Hang
// or Swallow; End takes it away.
func MountFUSE(t testing.TB, dir string) *FUSE {
	t.Helper()
	fd, err := syscall.Open("/dev/fuse", syscall.O_RDWR|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Fatalf("open /dev/fuse: %v", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := syscall.Mount("dead", dir, "fuse", 0, data); err != nil {
		_ = syscall.Close(fd)
		t.Fatalf("mount FUSE: %v", err)
	}
	// Not before: what has no mount yet is never ready in Go's poller.
	f := &FUSE{t: t, dir: dir, file: os.NewFile(uintptr(fd), "/dev/fuse")}
	t.Cleanup(f.End)
	f.serve(true)
	if _, err := os.Stat(dir); err != nil { // waits for the handshake
		t.Fatal(err)
	}
	return f
}

// Hang ends the server: requests wait, but die with those who have made them.
func (f *FUSE) Hang() {
	_ = f.file.SetReadDeadline(time.Unix(1, 0))
	<-f.done
}

// Swallow takes requests and does not answer them. Who has made one cannot even
// be killed. The channel is closed at the first.
func (f *FUSE) Swallow() (first <-chan struct{}) {
	f.Hang()
	_ = f.file.SetReadDeadline(time.Time{})
	return f.serve(false)
}

// End fails all requests that wait, and unmounts. Safe twice.
func (f *FUSE) End() {
	f.t.Helper()
	if f.file == nil {
		return
	}
	if err := syscall.Unmount(f.dir, syscall.MNT_DETACH); err != nil {
		f.t.Errorf("unmount FUSE: %v", err)
	}
	_ = f.file.Close() // aborts the connection
	<-f.done
	f.file = nil
}

// Requests and sizes of FUSE's protocol.
const (
	fuseGetattr  = 3
	fuseLookup   = 1
	fuseInit     = 26
	fuseHeader   = 16
	fuseInitOut  = 64
	fuseAttrOut  = 104
	fuseVersion  = 7
	fuseRevision = 31
)

func (f *FUSE) serve(answer bool) (first <-chan struct{}) {
	f.done = make(chan struct{})
	came := make(chan struct{})
	var once sync.Once
	go func() {
		defer close(f.done)
		in := make([]byte, 1<<18)
		for {
			n, err := f.file.Read(in)
			if err != nil {
				return
			}
			once.Do(func() { close(came) })
			if answer && n >= 40 {
				_, _ = f.file.Write(fuseReply(in[:n]))
			}
		}
	}()
	return came
}

// fuseReply answers for a folder that is always there and always empty.
func fuseReply(in []byte) []byte {
	le := binary.LittleEndian
	out := make([]byte, fuseHeader, fuseHeader+fuseAttrOut)
	var errno syscall.Errno
	switch le.Uint32(in[4:]) {
	case fuseInit:
		out = out[:fuseHeader+fuseInitOut]
		le.PutUint32(out[fuseHeader:], fuseVersion)
		le.PutUint32(out[fuseHeader+4:], fuseRevision)
		le.PutUint32(out[fuseHeader+20:], 4096) // of a write
	case fuseGetattr:
		out = out[:fuseHeader+fuseAttrOut] // to be asked again each time
		le.PutUint64(out[fuseHeader+16:], 1)
		le.PutUint32(out[fuseHeader+16+60:], syscall.S_IFDIR|0o755)
		le.PutUint32(out[fuseHeader+16+64:], 2)
	case fuseLookup:
		errno = syscall.ENOENT
	default:
		errno = syscall.ENOSYS
	}
	le.PutUint32(out, uint32(len(out)))
	le.PutUint32(out[4:], uint32(-int32(errno)))
	copy(out[8:16], in[8:16]) // which request
	return out
}
