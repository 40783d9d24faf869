package e2e

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: another each time, which is logged")

// stress is many clients that do to a few pods whatever comes to their mind.
type stress struct {
	n    *Node
	seed uint64
	rt   cri.RuntimeServiceClient // of a connection that outlives crid
	over <-chan struct{}          // no new operations
	may  []codes.Code             // errors that are answers

	mu    sync.Mutex
	tally map[string]int // by call and code
}

const (
	stressClients = 100
	stressPods    = 8
	stressTime    = 10 * time.Second
)

func newStress(t *testing.T, n *Node, may ...codes.Code) *stress {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("again with: -seed %d", seed)
	conn, err := grpc.NewClient("unix://"+n.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	// Somebody else was faster; or the client did not wait.
	may = append(may, codes.OK, codes.FailedPrecondition, codes.AlreadyExists, codes.NotFound, codes.Canceled, codes.DeadlineExceeded)
	ctx, cancel := context.WithTimeout(context.Background(), stressTime)
	t.Cleanup(cancel)
	return &stress{n: n, seed: seed, rt: cri.NewRuntimeServiceClient(conn), over: ctx.Done(), may: may, tally: map[string]int{}}
}

// run returns when all clients have done what they began.
func (s *stress) run() {
	var wg sync.WaitGroup
	for i := range stressClients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(s.seed, uint64(i)))
			for {
				select {
				case <-s.over:
					return
				default:
					s.operation(rnd)
				}
			}
		})
	}
	wg.Wait()
}

// pod is the configuration of one of the pods: the same name, the same wish.
func (s *stress) pod(i int) *cri.PodSandboxConfig {
	p := s.n.PodConfig(fmt.Sprintf("stress-%d", i))
	options := p.Linux.SecurityContext.NamespaceOptions
	options.Pid = []cri.NamespaceMode{cri.NamespaceMode_CONTAINER, cri.NamespaceMode_POD, cri.NamespaceMode_NODE}[i%3]
	if i%4 != 0 {
		options.Network, p.Hostname = cri.NamespaceMode_NODE, "" // plugins take most of the time
	}
	return p
}

func (s *stress) container(p *cri.PodSandboxConfig, i int) *cri.ContainerConfig {
	script := []string{"exec sleep 1000", "sleep 0.1; exit 3", "trap '' TERM; setsid sleep 1000 & while :; do sleep 0.1; done"}[i]
	c := s.n.ContainerConfig(fmt.Sprintf("c%d", i), "sh", "-c", script)
	c.Linux.SecurityContext.NamespaceOptions = p.Linux.SecurityContext.NamespaceOptions
	return c
}

func (s *stress) operation(rnd *rand.Rand) {
	which := rnd.IntN(stressPods)
	p := s.pod(which)
	// Some do not wait for the answer.
	limit := time.Minute
	if rnd.IntN(8) == 0 {
		limit = time.Duration(rnd.IntN(100)) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	pod, container := s.pick(ctx, rnd, p)
	var call string
	var err error
	switch op := rnd.IntN(60); {
	case op < 6 || pod == "":
		call = "RunPodSandbox"
		_, err = s.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p})
	case op < 24:
		call = "CreateContainer"
		var r *cri.CreateContainerResponse
		r, err = s.rt.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: p, Config: s.container(p, rnd.IntN(3))})
		if err == nil && rnd.IntN(2) == 0 {
			_, err := s.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: r.ContainerId})
			s.note("StartContainer", err)
		}
	case op < 40:
		call = "StartContainer"
		_, err = s.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: container})
	case op < 45:
		call = "StopContainer"
		_, err = s.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: container, Timeout: int64(rnd.IntN(2))})
	case op < 52:
		call = "ExecSync"
		_, err = s.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}})
	case op < 58:
		call = "RemoveContainer"
		_, err = s.rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: container})
	case op < 59:
		call = "StopPodSandbox"
		_, err = s.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: pod})
	default:
		call = "RemovePodSandbox"
		_, err = s.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: pod})
	}
	s.note(call, err)
}

// pick is the pod's sandbox and one of its containers; there may be neither. A
// call for a container is then one for an ID that does not exist.
func (s *stress) pick(ctx context.Context, rnd *rand.Rand, p *cri.PodSandboxConfig) (pod, container string) {
	container = "none"
	pods, err := s.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: p.Labels}})
	s.note("ListPodSandbox", err)
	for _, s := range pods.GetItems() {
		pod = s.Id
	}
	if pod == "" {
		return "", container
	}
	all, err := s.rt.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: pod}})
	s.note("ListContainers", err)
	if cs := all.GetContainers(); len(cs) > 0 {
		container = cs[rnd.IntN(len(cs))].Id
	}
	return pod, container
}

func (s *stress) note(call string, err error) {
	code := status.Code(err)
	if code == codes.Unavailable {
		time.Sleep(50 * time.Millisecond) //nolint:forbidigo // as clients do when crid is away
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tally[fmt.Sprintf("%s %v", call, code)]++
	if !slices.Contains(s.may, code) {
		s.n.T.Errorf("%s = %v", call, err)
	}
}

// consistent fails the test unless what crid says is what the kernel has, and each
// of calls has succeeded at least once.
func (s *stress) consistent(calls ...string) {
	n, t := s.n, s.n.T
	t.Helper()
	counts := fmt.Sprint(s.tally)
	t.Logf("answers: %s", counts)
	for _, call := range calls {
		if s.tally[call+" OK"] == 0 {
			t.Errorf("no %s has succeeded: this tests nothing", call)
		}
	}
	var wrong []string
	n.settle(func() bool { wrong = s.differences(); return len(wrong) == 0 })
	for _, w := range wrong {
		t.Error(w)
	}
	n.checked()
}

// checked asks `crid check`, which must find nothing.
func (n *Node) checked() {
	n.T.Helper()
	if out, err := exec.Command(n.Programs.Crid, "--config", n.Config, "check").CombinedOutput(); err != nil {
		n.T.Errorf("crid check: %v\n%s", err, out)
	}
}

func (s *stress) differences() (wrong []string) {
	n := s.n
	pods, err := n.Runtime.ListPodSandbox(n.Ctx(), &cri.ListPodSandboxRequest{})
	if err != nil {
		return []string{err.Error()}
	}
	addresses := map[string]string{}
	for _, p := range pods.Items {
		st := n.PodStatus(p.Id)
		pinned := false
		for _, m := range n.mounts() {
			pinned = pinned || m == n.path("netns", "crid-"+p.Id)
		}
		ownNet := st.Linux.Namespaces.Options.Network == cri.NamespaceMode_POD
		ready := st.State == cri.PodSandboxState_SANDBOX_READY
		if pinned != (ready && ownNet) {
			wrong = append(wrong, fmt.Sprintf("sandbox %s of %s: %v, its network namespace is pinned: %t", p.Id[:12], p.Metadata.Name, st.State, pinned))
		}
		if ip := st.GetNetwork().GetIp(); ip != "" {
			if addresses[ip] != "" {
				wrong = append(wrong, fmt.Sprintf("sandboxes %s and %s have both the address %s", p.Id, addresses[ip], ip))
			}
			addresses[ip] = p.Id
		} else if ready && ownNet {
			wrong = append(wrong, fmt.Sprintf("sandbox %s has no address", p.Id))
		}
	}
	all, err := n.Runtime.ListContainers(n.Ctx(), &cri.ListContainersRequest{})
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range all.Containers {
		processes := n.inCgroup(c.Id)
		lives := c.State == cri.ContainerState_CONTAINER_RUNNING || c.State == cri.ContainerState_CONTAINER_CREATED
		if lives != (len(processes) > 0) {
			wrong = append(wrong, fmt.Sprintf("container %s of %s: %v, with the processes %q", c.Id[:12], c.PodSandboxId[:12], c.State, processes))
		}
	}
	for _, e := range must(os.ReadDir(n.path("root", "containers"))) {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if ok && !slices.ContainsFunc(all.Containers, func(c *cri.Container) bool { return c.Id == id }) {
			wrong = append(wrong, "a record of no container: "+e.Name())
		}
	}
	return wrong
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestStress: whatever a hundred clients do at once, each gets an answer that it
// can use, and in the end the kernel has what crid says. That nothing is left is
// looked for at the end of each test.
func TestStress(t *testing.T) {
	n := NewNode(t, NodeOptions{Env: []string{"CRID_VERIFY=1"}})
	n.PullBusybox()
	s := newStress(t, n)
	s.run()
	s.consistent("RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "RemovePodSandbox")
}

// made is how many containers have been made.
func (s *stress) made() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tally["CreateContainer OK"]
}

// TestStressWithCrashes: the same while crid is killed and started again.
func TestStressWithCrashes(t *testing.T) {
	n := NewNode(t, NodeOptions{Env: []string{"CRID_VERIFY=1"}})
	n.PullBusybox()
	s := newStress(t, n, codes.Unavailable)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.run()
	}()
	rnd := rand.New(rand.NewPCG(s.seed, stressClients))
	for crashes := 0; ; crashes++ {
		// On a slow machine too, something is made between two crashes.
		made := s.made()
		n.Eventually("another container, or the end", func() bool {
			select {
			case <-done:
				return true
			default:
				return s.made() > made
			}
		})
		select {
		case <-done:
			if crashes < 1 {
				t.Errorf("no crash")
			}
			s.consistent("RunPodSandbox", "CreateContainer")
			return
		case <-time.After(time.Duration(500+rnd.IntN(2000)) * time.Millisecond):
			n.Restart()
		}
	}
}
