// Demo is the part of `make run` that speaks CRI: it makes the image, runs a pod
// with it, shows what the pod does, and takes pods away again. hack/run.sh does
// the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const usage = `usage:
  demo image ARCHIVE PROGRAM    write an image that holds PROGRAM
  demo up SOCKET LOGS           run the pod, unless it runs, and show what it does
  demo id SOCKET                print the short IDs of the pod and of the container that runs
  demo down SOCKET              remove all pods`

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	err := run(ctx, os.Args[1:])
	if err != nil {
		if s, ok := status.FromError(err); ok {
			err = errors.New(s.Message())
		}
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 3 && args[0] == "image":
		return writeImage(args[1], args[2])
	case len(args) == 3 && args[0] == "up":
		return withClient(args[1], func(c client) error { return c.up(ctx, args[2]) })
	case len(args) == 2 && args[0] == "id":
		return withClient(args[1], func(c client) error { return c.id(ctx) })
	case len(args) == 2 && args[0] == "down":
		return withClient(args[1], func(c client) error { return c.down(ctx) })
	}
	return errors.New(usage)
}

// podLabels are those that kubelet sets: crictl takes a pod's name from them.
var podLabels = map[string]string{
	"io.kubernetes.pod.name": "web", "io.kubernetes.pod.namespace": "demo", "io.kubernetes.pod.uid": "demo-web",
}

// client is a connection to crid.
type client struct {
	cri.RuntimeServiceClient
}

func withClient(socket string, f func(client) error) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(client{cri.NewRuntimeServiceClient(conn)})
}

// up runs the demo's pod and walks through what one does with a pod.
func (c client) up(ctx context.Context, logs string) error {
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: "web", Namespace: "demo", Uid: "demo-web"},
		Hostname:     "web",
		LogDirectory: filepath.Join(logs, "demo_web"),
		Labels:       podLabels,
		Linux:        &cri.LinuxPodSandboxConfig{},
	}
	pod, container, err := c.find(ctx, sandbox)
	if err != nil {
		return err
	}
	if container != "" {
		say("The pod runs from the last time")
		err := c.show(ctx, pod, container)
		if err == nil || c.running(ctx, container) {
			return err
		}
		// As when crid and crid-monitor were killed at once: see the README.
		say("Its server has ended meanwhile (%v)", err)
		if err := c.remove(ctx, pod); err != nil {
			return err
		}
	}
	say("Running a pod with a web server in it")
	if pod, container, err = c.start(ctx, sandbox); err != nil {
		return err
	}
	return c.show(ctx, pod, container)
}

func (c client) running(ctx context.Context, container string) bool {
	s, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container})
	return err != nil || s.GetStatus().GetState() == cri.ContainerState_CONTAINER_RUNNING
}

// find looks for the pod of an earlier run; one that does not run any more, or
// that another version of this program has made, is removed.
func (c client) find(ctx context.Context, want *cri.PodSandboxConfig) (pod, container string, err error) {
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return "", "", err
	}
	for _, p := range pods.GetItems() {
		if p.GetMetadata().GetUid() != want.GetMetadata().GetUid() {
			continue
		}
		containers, err := c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
			PodSandboxId: p.GetId(), State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
		}})
		if err != nil {
			return "", "", err
		}
		same := maps.Equal(p.GetLabels(), want.GetLabels())
		if same && p.GetState() == cri.PodSandboxState_SANDBOX_READY && len(containers.GetContainers()) == 1 {
			return p.GetId(), containers.GetContainers()[0].GetId(), nil
		}
		if err := c.remove(ctx, p.GetId()); err != nil {
			return "", "", err
		}
	}
	return "", "", nil
}

func (c client) start(ctx context.Context, sandbox *cri.PodSandboxConfig) (pod, container string, err error) {
	p, err := c.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return "", "", err
	}
	created, err := c.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId:  p.GetPodSandboxId(),
		SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "server"},
			Labels:   podLabels,
			Image:    &cri.ImageSpec{Image: imageName},
			LogPath:  "server.log",
			Linux:    &cri.LinuxContainerConfig{},
		},
	})
	if err != nil {
		return "", "", err
	}
	_, err = c.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: created.GetContainerId()})
	return p.GetPodSandboxId(), created.GetContainerId(), err
}

// show fetches the page, prints the log, and runs commands in the container.
func (c client) show(ctx context.Context, pod, container string) error {
	s, err := c.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		return err
	}
	url := "http://" + s.GetStatus().GetNetwork().GetIp() + ":8080/"
	page, err := fetch(ctx, url)
	if err != nil {
		return err
	}
	say("Its page, fetched over the pod network from %s", url)
	fmt.Print(page)

	cs, err := c.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: container})
	if err != nil {
		return err
	}
	say("Its log, %s", cs.GetStatus().GetLogPath())
	text, err := os.ReadFile(cs.GetStatus().GetLogPath())
	if err != nil {
		return err
	}
	lines := strings.SplitAfter(string(text), "\n")
	fmt.Print(strings.Join(lines[max(0, len(lines)-6):], ""))

	for _, command := range [][]string{{"ps"}, {"id"}} {
		say("Command %q executed in the container", strings.Join(command, " "))
		r, err := c.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 10})
		if err != nil {
			return err
		}
		fmt.Printf("%s%s", r.GetStdout(), r.GetStderr())
		if r.GetExitCode() != 0 {
			return fmt.Errorf("it ended with code %d", r.GetExitCode())
		}
	}
	return nil
}

// id prints the IDs of the pod and its container as crictl shows and takes them.
func (c client) id(ctx context.Context) error {
	cs, err := c.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{
		LabelSelector: podLabels, State: &cri.ContainerStateValue{State: cri.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return err
	}
	if len(cs.GetContainers()) != 1 {
		return fmt.Errorf("%d containers of the demo's pod run, want 1", len(cs.GetContainers()))
	}
	fmt.Printf("%.13s %.13s\n", cs.GetContainers()[0].GetPodSandboxId(), cs.GetContainers()[0].GetId())
	return nil
}

// fetch gets a page, and waits for a server that has just been started.
func fetch(ctx context.Context, url string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	h := http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return "", err
		}
		resp, err := h.Do(req)
		if err == nil {
			defer resp.Body.Close()
			page, err := io.ReadAll(resp.Body)
			return string(page), err
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("the web server does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// down removes all pods of this crid.
func (c client) down(ctx context.Context) error {
	pods, err := c.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, p := range pods.GetItems() {
		if err := c.remove(ctx, p.GetId()); err != nil {
			return err
		}
	}
	return nil
}

func (c client) remove(ctx context.Context, pod string) error {
	if _, err := c.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	_, err := c.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

func say(format string, args ...any) { fmt.Printf("\n== "+format+"\n", args...) }
