package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/docker/go-units"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/monitor"
)

// nodeView is a node as `crid status` shows it. It is asked for over CRI, as kubelet
// would; --json prints it as it is.
type nodeView struct {
	Version      string          `json:"version"`
	API          string          `json:"api"`
	CgroupDriver string          `json:"cgroupDriver"`
	Conditions   []conditionView `json:"conditions"`
	Monitor      monitorView     `json:"monitor"`
	Features     []string        `json:"features"`
	Containers   map[string]int  `json:"containers"` // by state
	ImageBytes   uint64          `json:"imageBytes"`
	Pods         []podView       `json:"pods"`
}

type conditionView struct {
	Type    string `json:"type"`
	Status  bool   `json:"status"`
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// monitorView is of the monitor's figures, or why there are none.
type monitorView struct {
	PID     int    `json:"pid,omitempty"`
	Version string `json:"version,omitempty"`
	Execs   int    `json:"execs"`
	FDs     int    `json:"fds"`
	Error   string `json:"error,omitempty"`
}

// newMonitorView reads what a verbose Status says of the monitor.
func newMonitorView(info string) monitorView {
	var said struct {
		monitor.DumpReply
		Error string `json:"error"`
	}
	if err := json.Unmarshal([]byte(info), &said); err != nil {
		return monitorView{Error: "crid says nothing of it"}
	}
	return monitorView{PID: said.PID, Version: said.Build, Execs: said.Execs, FDs: said.FDs, Error: said.Error}
}

// podView is one row. Containers are counted by name, each with its newest attempt.
type podView struct {
	ID        string    `json:"id"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Ready     bool      `json:"ready"`
	Created   time.Time `json:"created"`
	Running   int       `json:"running"`
	Total     int       `json:"total"`
	Restarts  uint32    `json:"restarts"`
	CPU       *uint64   `json:"cpuNanocores,omitempty"`
	Memory    *uint64   `json:"workingSetBytes,omitempty"`
	IP        string    `json:"ip,omitempty"` // "" with the node's network
}

// statusReader asks a running crid, again and again if need be.
type statusReader struct {
	client *criClient
	ips    map[string]string // by sandbox; an address does not change
}

// read asks for everything.
func (r *statusReader) read(ctx context.Context) (*nodeView, error) {
	v := &nodeView{Containers: make(map[string]int)}
	if err := r.node(ctx, v); err != nil {
		return nil, plainStatus(err)
	}
	pods, err := r.pods(ctx, v.Containers)
	v.Pods = pods
	return v, plainStatus(err)
}

// node fills in all but pods and containers.
func (r *statusReader) node(ctx context.Context, v *nodeView) error {
	version, err := r.client.runtime.Version(ctx, &cri.VersionRequest{})
	if err != nil {
		return err
	}
	v.Version, v.API = version.GetRuntimeVersion(), version.GetRuntimeApiVersion()
	config, err := r.client.runtime.RuntimeConfig(ctx, &cri.RuntimeConfigRequest{})
	if err != nil {
		return err
	}
	v.CgroupDriver = strings.ToLower(config.GetLinux().GetCgroupDriver().String())
	status, err := r.client.runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
	if err != nil {
		return err
	}
	for _, c := range status.GetStatus().GetConditions() {
		v.Conditions = append(v.Conditions, conditionView{c.GetType(), c.GetStatus(), c.GetReason(), c.GetMessage()})
	}
	v.Features = features(status)
	v.Monitor = newMonitorView(status.GetInfo()["monitor"])
	disk, err := r.client.images.ImageFsInfo(ctx, &cri.ImageFsInfoRequest{})
	if err != nil {
		return err
	}
	for _, f := range disk.GetImageFilesystems() {
		v.ImageBytes += f.GetUsedBytes().GetValue()
	}
	return nil
}

func features(s *cri.StatusResponse) []string {
	var all []string
	add := func(has bool, name string) {
		if has {
			all = append(all, name)
		}
	}
	for _, h := range s.GetRuntimeHandlers() {
		f := h.GetFeatures()
		add(f.GetUserNamespaces(), "user namespaces")
		add(f.GetRecursiveReadOnlyMounts(), "recursive read-only mounts")
	}
	f := s.GetFeatures()
	add(f.GetSupplementalGroupsPolicy(), "supplemental groups policy")
	add(f.GetUserNamespacesHostNetwork(), "user namespaces with the node's network")
	add(f.GetMountOptions(), "mount options")
	return all
}

// pods is the rows, by namespace and name. states gets all containers, by state.
func (r *statusReader) pods(ctx context.Context, states map[string]int) ([]podView, error) {
	sandboxes, err := r.client.runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	containers, err := r.client.runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err != nil {
		return nil, err
	}
	newest := make(map[string]map[string]*cri.Container) // by sandbox and name
	for _, c := range containers.GetContainers() {
		states[strings.ToLower(strings.TrimPrefix(c.GetState().String(), "CONTAINER_"))]++
		byName := newest[c.GetPodSandboxId()]
		if byName == nil {
			byName = make(map[string]*cri.Container)
			newest[c.GetPodSandboxId()] = byName
		}
		name := c.GetMetadata().GetName()
		if old := byName[name]; old == nil || old.GetMetadata().GetAttempt() < c.GetMetadata().GetAttempt() {
			byName[name] = c
		}
	}
	used, err := r.used(ctx)
	if err != nil {
		return nil, err
	}
	rows := make([]podView, 0, len(sandboxes.GetItems()))
	for _, s := range sandboxes.GetItems() {
		row := podView{
			ID: s.GetId(), Namespace: s.GetMetadata().GetNamespace(), Name: s.GetMetadata().GetName(),
			Ready: s.GetState() == cri.PodSandboxState_SANDBOX_READY, Created: time.Unix(0, s.GetCreatedAt()),
		}
		for _, c := range newest[row.ID] {
			row.Total++
			row.Restarts += c.GetMetadata().GetAttempt()
			if c.GetState() == cri.ContainerState_CONTAINER_RUNNING {
				row.Running++
			}
		}
		if u := used[row.ID]; row.Ready && u != nil {
			row.CPU, row.Memory = figure(u.GetCpu().GetUsageNanoCores()), figure(u.GetMemory().GetWorkingSetBytes())
		}
		rows = append(rows, row)
	}
	r.addresses(ctx, rows)
	slices.SortFunc(rows, func(a, b podView) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name), b.Created.Compare(a.Created))
	})
	return rows, nil
}

func figure(v *cri.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	return &v.Value
}

// rateWindow is what crid makes a CPU rate of at least: two questions that far apart.
const rateWindow = 1100 * time.Millisecond

// used is what the ready sandboxes use. When nobody has asked crid lately there are no
// rates yet: then it asks once more.
func (r *statusReader) used(ctx context.Context) (map[string]*cri.LinuxPodSandboxStats, error) {
	for try := 0; ; try++ {
		stats, err := r.client.runtime.ListPodSandboxStats(ctx, &cri.ListPodSandboxStatsRequest{})
		if err != nil {
			return nil, err
		}
		all, missing := make(map[string]*cri.LinuxPodSandboxStats), false
		for _, s := range stats.GetStats() {
			linux := s.GetLinux()
			all[s.GetAttributes().GetId()] = linux
			missing = missing || linux.GetCpu() != nil && linux.GetCpu().GetUsageNanoCores() == nil
		}
		if !missing || try > 0 {
			return all, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(rateWindow):
		}
	}
}

// addresses fills in the pods' addresses, which only their statuses have: each is asked
// for once. A pod that goes meanwhile has none.
func (r *statusReader) addresses(ctx context.Context, rows []podView) {
	known := r.ips
	r.ips = make(map[string]string, len(rows))
	for i := range rows {
		row := &rows[i]
		ip, ok := known[row.ID]
		if !ok && row.Ready {
			s, err := r.client.runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: row.ID})
			if err != nil {
				continue
			}
			ip, ok = s.GetStatus().GetNetwork().GetIp(), true
		}
		if ok {
			r.ips[row.ID], row.IP = ip, ip
		}
	}
}

// text writes the node, and the table below it.
func (v *nodeView) text(out io.Writer, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	line := func(key, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", key, plain(fmt.Sprintf(format, args...)))
	}
	line("crid", "%s, CRI %s, cgroup driver %s", v.Version, v.API, v.CgroupDriver)
	for _, c := range v.Conditions {
		what := "yes"
		if !c.Status {
			what = fmt.Sprintf("NO: %s: %s", c.Reason, c.Message)
		}
		line(c.Type, "%s", what)
	}
	if m := v.Monitor; m.Error != "" {
		line("crid-monitor", "NO: %s", m.Error)
	} else {
		line("crid-monitor", "%s, pid %d, %d execs, %d descriptors", m.Version, m.PID, m.Execs, m.FDs)
	}
	line("features", "%s", strings.Join(v.Features, ", "))
	ready := 0
	for i := range v.Pods {
		if v.Pods[i].Ready {
			ready++
		}
	}
	line("pods", "%d ready, %d not ready", ready, len(v.Pods)-ready)
	line("containers", "%d running, %d created, %d exited", v.Containers["running"], v.Containers["created"], v.Containers["exited"])
	line("images", "%s", units.HumanSize(float64(v.ImageBytes))) // as `crid image list` has it
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	return podTable(out, v.Pods, now)
}

// podTable writes the rows.
func podTable(out io.Writer, rows []podView, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "POD ID\tNAMESPACE/NAME\tSTATE\tAGE\tRUNNING\tRESTARTS\tCPU\tMEMORY\tIP")
	for i := range rows {
		r := &rows[i]
		state, ip, cpu, memory := "Ready", "-", "-", "-"
		if !r.Ready {
			state = "NotReady"
		}
		if r.IP != "" {
			ip = r.IP
		}
		if r.CPU != nil {
			cpu = fmt.Sprintf("%dm", (*r.CPU+500_000)/1_000_000)
		}
		if r.Memory != nil {
			memory = units.CustomSize("%.4g%s", float64(*r.Memory), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB"})
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d/%d\t%d\t%s\t%s\t%s\n", shortID(r.ID), plain(r.Namespace+"/"+r.Name), state,
			strings.ToLower(units.HumanDuration(now.Sub(r.Created))), r.Running, r.Total, r.Restarts, cpu, memory, ip)
	}
	return w.Flush()
}

// plain is s without what would steer a terminal.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s)
}
