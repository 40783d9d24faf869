package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"k8s.io/klog/v2"
)

// maxStacks bounds what SIGUSR1 writes: thousands of goroutines, and no more than a
// journal takes.
const maxStacks = 1 << 20

// answerSignals answers those signals that do not end crid, until ctx ends. out is
// where the log goes.
func answerSignals(ctx context.Context, signals <-chan os.Signal, out io.Writer) {
	log := klog.FromContext(ctx)
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == syscall.SIGHUP {
				log.Info("Ignored SIGHUP: a changed configuration takes a restart, containers run on")
				continue
			}
			log.Info("Asked by SIGUSR1 for all goroutines, they follow", "goroutines", runtime.NumGoroutine())
			writeStacks(out, make([]byte, maxStacks))
		}
	}
}

// writeStacks writes as much of all goroutines' stacks as buf has room for.
func writeStacks(out io.Writer, buf []byte) {
	n := runtime.Stack(buf, true)
	_, _ = out.Write(buf[:n]) // a log that cannot be written has nobody to tell
	if n == len(buf) {
		fmt.Fprintf(out, "\n[cut after %d bytes; /debug/pprof/goroutine on the admin socket has all]\n", n)
	}
}
