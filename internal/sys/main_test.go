package sys_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// envChild makes the test binary a process with a job of its own.
const envChild = "CRID_SYS_TEST_CHILD"

func TestMain(m *testing.M) {
	job, ok := os.LookupEnv(envChild)
	if !ok {
		os.Exit(m.Run())
	}
	switch name, arg, _ := strings.Cut(job, " "); name {
	case "exit": // exit CODE: when stdin ends
		waitForEOF()
		var code int
		_, _ = fmt.Sscan(arg, &code)
		os.Exit(code)
	case "signal": // signal N: end by it when stdin ends
		waitForEOF()
		var sig syscall.Signal
		_, _ = fmt.Sscan(arg, (*int)(&sig))
		_ = syscall.Kill(os.Getpid(), sig)
		select {}
	case "hang": // hang LOCK DEAD: see hangApart
		lock, dead, _ := strings.Cut(arg, " ")
		hangApart(lock, dead)
	case "keep": // keep FILE...: see TestService
		if err := keep(strings.Fields(arg)...); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case "passed": // passed MOST
		var most int
		_, _ = fmt.Sscan(arg, &most)
		fmt.Println(passed(most))
	case "parent": // parent JOB: start a child with JOB, print its PID, reap it when told by the end of a line
		child := exec.Command("/proc/self/exe")
		child.Env = append(os.Environ(), envChild+"="+arg)
		in, err := child.StdinPipe()
		if err == nil {
			err = child.Start()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(child.Process.Pid)
		var line string
		_, _ = fmt.Scanln(&line) // "end": the child may end
		_ = in.Close()
		_, _ = fmt.Scanln(&line) // "reap"
		_ = child.Wait()
		fmt.Println("reaped")
		waitForEOF()
	}
}

func waitForEOF() {
	var b [64]byte
	for {
		if n, err := os.Stdin.Read(b[:]); n == 0 || err != nil {
			return
		}
	}
}

// childCommand is the test binary with a job.
func childCommand(t *testing.T, job string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), envChild+"="+job, "GORACE=atexit_sleep_ms=0")
	cmd.Stderr = os.Stderr
	return cmd
}
