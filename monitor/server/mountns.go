package server

import (
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// inMounts runs do in another mount namespace, on a thread that ends afterwards.
func inMounts(ns *os.File, do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		// A mount namespace cannot be entered while its folder is shared.
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			result <- fmt.Errorf("enter mount namespace: %w", err)
			return
		}
		result <- do()
	}()
	return <-result
}

// namePtr is a process name as prctl takes it.
func namePtr(name string) uintptr {
	b := append([]byte(name), 0)
	return uintptr(unsafe.Pointer(&b[0]))
}
