package server

import (
	"context"
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
)

func TestRunLogExitDelete(t *testing.T) {
	n := newNode(t)
	n.run("a", "sh", "-c", "echo out; echo err >&2; printf unended; exit 7")
	e := n.exit("a")
	if e.Code != 7 || e.OOMKilled || e.Lost || e.At.IsZero() {
		t.Errorf("exit = %+v, want code 7", e)
	}
	got := texts(n.log("a"))
	for _, want := range []string{"stdout F out\n", "stderr F err\n", "stdout P unended\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("log = %q, want %q in it", got, want)
		}
	}
	n.delete("a")
	n.residue()
}

func TestStartFailures(t *testing.T) {
	n := newNode(t)
	for _, tt := range []struct {
		name string
		args []string
		want string // part of the error
	}{
		{"absent", []string{"/nope"}, `exec: "/nope": stat /nope: no such file or directory; the image has no such program`},
		{"not-in-path", []string{"nope"}, `exec: "nope": executable file not found in $PATH; the image has no such program`},
		{"folder", []string{"/tmp"}, `exec: "/tmp": is a directory`},
		{"not-executable", []string{"/etc/text"}, `exec: "/etc/text": permission denied; the container's user may not execute it`},
		{"no-format", []string{"/etc/garbage"}, `exec /etc/garbage: exec format error; it is for another architecture`},
		{"no-interpreter", []string{"/etc/script"}, `exec /etc/script: no such file or directory; the program is there`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := tt.name
			writeExecutable(t, n.rootfs+"/etc/text", "text", 0o644)
			writeExecutable(t, n.rootfs+"/etc/garbage", "\x00\x01garbage", 0o755)
			writeExecutable(t, n.rootfs+"/etc/script", "#!/no/such/interpreter\n", 0o755)
			n.create(n.request(id, n.spec(tt.args...)))
			err := n.client.Start(context.Background(), id)
			if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Start = %v, want invalid %q", err, tt.want)
			}
			if e := n.exit(id); e.Code != 128 || e.Lost {
				t.Errorf("exit = %+v, want code 128", e)
			}
			if log := n.log(id); log != "" {
				t.Errorf("log = %q, want none: the error is not the container's", log)
			}
			err = n.client.Start(context.Background(), id)
			if !errkind.Is(err, errkind.BadState) {
				t.Errorf("second Start = %v, want bad state", err)
			}
			n.delete(id)
		})
	}
	n.residue()
}

func TestExec(t *testing.T) {
	n := newNode(t)
	n.run("a", "sleep", "1000")
	out, errOut, code, err := n.exec("a", "sh", "-c", "echo out; echo err >&2; exit 3")
	if err != nil || out != "out\n" || errOut != "err\n" || code != 3 {
		t.Errorf("exec = %q, %q, %d, %v, want out, err, 3", out, errOut, code, err)
	}
	for _, tt := range []struct{ arg, want string }{
		{"/nope", `exec: "/nope": stat /nope: no such file or directory`},
		{"nope", `exec: "nope": executable file not found in $PATH`},
		{"/tmp", `exec: "/tmp": is a directory`},
	} {
		_, _, _, err := n.exec("a", tt.arg)
		if !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("exec %s = %v, want invalid %q", tt.arg, err, tt.want)
		}
	}
}
