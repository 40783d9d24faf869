package server

import (
	"fmt"
	"os"
	"runtime"

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
