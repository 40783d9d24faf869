package server

import (
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/cridproject/crid/internal/testutil"
)

func TestParseStat(t *testing.T) {
	const tail = "S 10 20 30 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9 9"
	for _, in := range []string{"1 (sh) " + tail, "1 (a) b) (c d) " + tail} {
		got, err := parseStat([]byte(in))
		want := procStat{state: 'S', ppid: 10, session: 30, start: 4242}
		if err != nil || got != want {
			t.Errorf("parseStat(%q) = %+v, %v, want %+v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "1 (sh", "1 (sh) S", "1 (sh) S x y z"} {
		if _, err := parseStat([]byte(in)); err == nil {
			t.Errorf("parseStat(%q) = nil, want an error", in)
		}
	}
	st, err := readStat(os.Getpid())
	if err != nil || st.ppid != os.Getppid() || st.start == 0 {
		t.Errorf("readStat of this process = %+v, %v, want parent %d", st, err, os.Getppid())
	}
}

func TestZombieHasExitCode(t *testing.T) {
	for _, tt := range []struct {
		script string
		want   int
	}{{"exit 7", 7}, {"kill -9 $$", 137}} {
		cmd := exec.Command("/bin/sh", "-c", tt.script)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		testutil.WaitFor(t, "zombie", func() bool {
			st, err := readStat(cmd.Process.Pid)
			return err != nil || st.dead()
		})
		st, err := readStat(cmd.Process.Pid)
		if got := statusCode(syscall.WaitStatus(st.exit)); err != nil || got != tt.want {
			t.Errorf("exit code of a zombie = %d, %v, want %d", got, err, tt.want)
		}
		_ = cmd.Wait()
	}
}

func TestOwnChildren(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for name, list := range map[string]func() []int{"children": ownChildren, "by parent": childrenByParent} {
		found := false
		for _, pid := range list() {
			found = found || pid == cmd.Process.Pid
		}
		if !found {
			t.Errorf("%s does not have process %d", name, cmd.Process.Pid)
		}
	}
}

func TestKillProcessChecksStart(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	st, err := readStat(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	killProcess(cmd.Process.Pid, st.start+1) // another process's
	if now, err := readStat(cmd.Process.Pid); err != nil || now.dead() {
		t.Error("a process with another start time was killed")
	}
	killProcess(cmd.Process.Pid, st.start)
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	killProcess(cmd.Process.Pid, st.start) // gone
}
