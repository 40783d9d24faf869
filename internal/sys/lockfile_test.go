package sys

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestLockFile(t *testing.T) {
	path := t.TempDir() + "/lock"
	f, err := LockFile(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := LockFile(ended, path); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("LockFile of a locked file = %v, want ErrLocked and the owner", err)
	}
	// One who waits has it as soon as it is free.
	got := make(chan error, 1)
	go func() {
		second, err := LockFile(t.Context(), path)
		if err == nil {
			err = second.Close()
		}
		got <- err
	}()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Errorf("LockFile of a file that becomes free = %v", err)
	}
	if _, err := LockFile(t.Context(), t.TempDir()+"/no/lock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("LockFile in a missing folder = %v, want not exist", err)
	}
}
