package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/cridproject/crid/test/e2e"
)

// Logs by all that kubectl logs has a flag for.
func TestLogs(t *testing.T) {
	k := newKubelet(t, options{})
	k.run("talks", `
		initContainers:
		- name: side
			image: IMAGE
			restartPolicy: Always
			command: [sh, -c, "echo side; sleep 1000"]
		- name: init
			image: IMAGE
			command: [sh, -c, "printf pre; printf pared"]
		containers:
		- name: lines
			image: IMAGE
			command: [sh, -c, "for i in 1 2 3 4 5; do echo line $i; done; until [ -e /tmp/more ]; do sleep 0.05; done; echo line 6; sleep 1000"]
		- name: long
			image: IMAGE
			command: [sh, -c, "head -c 100000 /dev/zero | tr '\\0' x; echo; sleep 1000"]
	`)
	k.run("dies", `
		containers:
		- name: main
			image: IMAGE
			command: [sh, -c, "touch /lives/count; echo life $(wc -l < /lives/count); echo >> /lives/count; until rm /lives/end; do sleep 0.05; done 2>/dev/null; echo dying; exit 3"]
			volumeMounts: [{name: lives, mountPath: /lives}]
		volumes: [{name: lives, emptyDir: {}}]
	`)
	k.await("talks", "is ready", ready)
	k.await("dies", "is ready", ready)
	want := func(t *testing.T, text, pod, name string, params ...string) {
		t.Helper()
		k := k.within(t)
		k.eventually(fmt.Sprintf("the log of %s with %v is %q", name, params, text), func() error {
			got, err := get(logURL(pod, name, params...))
			if err == nil && got != text {
				err = fmt.Errorf("it is %q", end(got))
			}
			return err
		})
	}
	t.Run("Whole", func(t *testing.T) {
		want(t, "line 1\nline 2\nline 3\nline 4\nline 5\n", "talks", "lines")
		want(t, "side\n", "talks", "side")
		want(t, "prepared", "talks", "init") // a line without an end
		want(t, strings.Repeat("x", 100000)+"\n", "talks", "long")
	})
	t.Run("Tail", func(t *testing.T) {
		want(t, "line 4\nline 5\n", "talks", "lines", "tailLines", "2")
		want(t, "", "talks", "lines", "tailLines", "0")
		want(t, "line 4\nline", "talks", "lines", "tailLines", "2", "limitBytes", "11")
		want(t, "line 5\n", "talks", "lines", "tail", "1") // the name that it had once
		want(t, strings.Repeat("x", 5), "talks", "long", "limitBytes", "5")
	})
	t.Run("Since", func(t *testing.T) { testLogsSince(t, k.within(t)) })
	t.Run("Follow", func(t *testing.T) { testLogsFollow(t, k.within(t)) })
	t.Run("Previous", func(t *testing.T) {
		k := k.within(t)
		if _, err := get(logURL("dies", "main", "previous", "true")); err == nil || !strings.Contains(err.Error(), "previous terminated container") {
			t.Errorf("the previous log of a container that is the first = %v, want an error that says so", err)
		}
		follow := k.followLog("dies", "main")
		if !follow.Await("life 0\n") {
			t.Fatalf("the log that is followed is %q", follow.String())
		}
		k.exec("dies", "main", "touch", "/lives/end")
		// Following ends with the container, with all that it has said.
		if err := <-follow.done; err != nil || follow.String() != "life 0\ndying\n" {
			t.Errorf("the log that was followed is %q, %v", follow.String(), err)
		}
		k.await("dies", "has been restarted", func(p *corev1.Pod) bool { return ready(p) && container(p, "main").RestartCount == 1 })
		want(t, "life 0\ndying\n", "dies", "main", "previous", "true")
		want(t, "life 1\n", "dies", "main")
	})
}

// testLogsSince takes the times of lines from timestamps.
func testLogsSince(t *testing.T, k *kubelet) {
	body, err := get(logURL("talks", "lines", "timestamps", "true"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := k.pod("talks")
	if err != nil {
		t.Fatal(err)
	}
	last := container(p, "lines").State.Running.StartedAt.Time // of whole seconds
	var times []time.Time
	for line := range strings.Lines(body) {
		at, text, _ := strings.Cut(line, " ")
		when, err := time.Parse(time.RFC3339Nano, at)
		if err != nil || when.Before(last) || text != fmt.Sprintf("line %d\n", len(times)+1) {
			t.Errorf("line %q, want line %d after %v; %v", line, len(times)+1, last, err)
		}
		last, times = when, append(times, when)
	}
	if len(times) < 5 {
		t.Fatalf("log with times is %q", body)
	}
	now := time.Now()
	for since, want := range map[string]int{
		times[0].Add(-time.Second).UTC().Format(time.RFC3339): len(times),
		now.Add(time.Hour).UTC().Format(time.RFC3339):         0,
	} {
		got, err := get(logURL("talks", "lines", "sinceTime", since))
		if err != nil || strings.Count(got, "\n") != want {
			t.Errorf("since %s there are the lines %q, want %d; %v", since, got, want, err)
		}
	}
	if got, err := get(logURL("talks", "lines", "sinceSeconds", "3600")); err != nil || strings.Count(got, "\n") != len(times) {
		t.Errorf("of the last hour there are the lines %q, want all; %v", got, err)
	}
}

func testLogsFollow(t *testing.T, k *kubelet) {
	follow := k.followLog("talks", "lines", "tailLines", "1")
	if !follow.Await("line 5\n") {
		t.Fatalf("the log that is followed is %q", follow.String())
	}
	k.exec("talks", "lines", "touch", "/tmp/more")
	if !follow.Await("line 6\n") || follow.String() != "line 5\nline 6\n" {
		t.Errorf("the log that is followed is %q", follow.String())
	}
	follow.stop()
	<-follow.done
}

// following is a log that is read while it grows, until its container or the test ends.
type following struct {
	e2e.Buffer
	stop context.CancelFunc
	done chan error
}

func (k *kubelet) followLog(pod, name string, params ...string) *following {
	k.t.Helper()
	ctx, stop := context.WithCancel(k.t.Context())
	f := &following{stop: stop, done: make(chan error, 1)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, logURL(pod, name, append(params, "follow", "true")...), http.NoBody)
	if err != nil {
		k.t.Fatal(err)
	}
	c := *client
	c.Timeout = 0
	go func() {
		f.done <- func() error {
			r, err := c.Do(req)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if r.StatusCode != http.StatusOK {
				return errors.New(r.Status)
			}
			_, err = io.Copy(f, r.Body)
			return err
		}()
	}()
	return f
}
