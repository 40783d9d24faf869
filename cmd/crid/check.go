package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/monitor"
)

// settle is how long a difference must last to be one: what is seen once may be
// an operation under way.
const settle = 2 * time.Second

// check compares what is written down with what is there, changes nothing, and
// fails if there are differences.
func (p program) check(ctx context.Context, c Config) error {
	v, err := look(ctx, c)
	if err != nil {
		return err
	}
	found := v.differences()
	serves := tryConnect(ctx, c.Socket) == nil
	if len(found) > 0 && serves {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
		if v, err = look(ctx, c); err != nil {
			return err
		}
		again := v.differences()
		found = slices.DeleteFunc(found, func(s string) bool { return !slices.Contains(again, s) })
	}
	if !serves {
		fmt.Fprintf(p.out, "no crid serves %s\n", c.Socket)
	}
	if v.monitor == nil {
		fmt.Fprintf(p.out, "no crid-monitor serves %s\n", monitorSocket(c))
	}
	for _, f := range found {
		fmt.Fprintln(p.out, f)
	}
	if len(found) == 0 {
		fmt.Fprintf(p.out, "no differences: %s, %s, %s\n", count(len(v.sandboxes), "pod sandbox"), count(len(v.containers), "container"), count(v.imageCount, "image"))
		return nil
	}
	what := count(len(found), "difference") + " between records and the machine"
	if !slices.ContainsFunc(found, func(s string) bool { return !strings.Contains(s, setAside) }) {
		return errors.New(what) // crid has done what it can
	}
	again := "restart"
	if !serves {
		again = "start"
	}
	return fmt.Errorf("%s; %s crid, it finishes or undoes what was left half done", what, again)
}

// setAside is said of what is in quarantine.
const setAside = "was set aside"

// count is a number of things in words.
func count(n int, thing string) string {
	switch {
	case n == 1:
	case strings.HasSuffix(thing, "x"):
		thing += "es"
	default:
		thing += "s"
	}
	return fmt.Sprintf("%d %s", n, thing)
}

// view is everything there is of pods on this machine, seen once.
type view struct {
	config     Config
	bootID     string
	sandboxes  map[string]sandboxFacts
	containers map[string]containerFacts
	unreadable []string

	monitor map[string]monitor.ListItem // nil when none runs
	cgroups map[string]string           // ID → one of its folders, below the default parent
	mounts  map[string]bool             // mount points
	netns   []string                    // IDs with a file in netns_dir
	folders map[string]string           // ID → a folder of its own in state or root

	images     []string // what is wrong with the image store
	imageCount int
}

// sandboxFacts and containerFacts are the parts of the records that can be
// compared. docs/state-on-disk.md describes the records.
type sandboxFacts struct {
	BootID, State, NetNS string
	Holder               *struct{ PID int }
}

type containerFacts struct {
	BootID, State, Sandbox string
}

func look(ctx context.Context, c Config) (*view, error) {
	v := &view{config: c, bootID: sys.BootID(), folders: map[string]string{}}
	var err error
	if v.sandboxes, err = readRecords[sandboxFacts](v, "sandboxes"); err != nil {
		return nil, err
	}
	if v.containers, err = readRecords[containerFacts](v, "containers"); err != nil {
		return nil, err
	}
	if v.monitor, err = monitorTable(ctx, c); err != nil {
		return nil, err
	}
	if v.cgroups, err = ownCgroups(c); err != nil {
		return nil, err
	}
	mounts, err := sys.Mounts()
	if err != nil {
		return nil, err
	}
	v.mounts = map[string]bool{}
	for _, m := range mounts {
		v.mounts[m.Point] = true
	}
	for _, name := range names(c.NetNSDir) {
		if id, ok := strings.CutPrefix(name, "crid-"); ok {
			v.netns = append(v.netns, id)
		}
	}
	for _, dir := range []string{filepath.Join(c.State, "sandboxes"), filepath.Join(c.Root, "rootfs")} {
		for _, id := range names(dir) {
			v.folders[id] = filepath.Join(dir, id)
		}
	}
	v.imageCount = len(names(filepath.Join(c.Root, "images")))
	v.images, err = checkImages(ctx, c)
	return v, err
}

// checkImages has a running crid look at its image store: it knows which layers
// belong to a pull under way.
func checkImages(ctx context.Context, c Config) ([]string, error) {
	if tryConnect(ctx, adminPath(c)) == nil {
		return newAdminClient(adminPath(c)).checkImages(ctx)
	}
	return texts(image.CheckRoot(ctx, c.Root)), nil
}

// readRecords reads all records of a kind; those that cannot be read are noted.
func readRecords[R any](v *view, kind string) (map[string]R, error) {
	dir := filepath.Join(v.config.Root, kind)
	if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read records: %w", err)
	}
	all := map[string]R{}
	for _, name := range names(dir) {
		id, ok := strings.CutSuffix(name, ".json")
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		var r R
		data, err := os.ReadFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			v.unreadable = append(v.unreadable, fmt.Sprintf("record %s cannot be read: %v", filepath.Join(dir, name), err))
		}
		all[id] = r
	}
	return all, nil
}

// monitorTable is what the monitor has; nil when none runs.
func monitorTable(ctx context.Context, c Config) (map[string]monitor.ListItem, error) {
	client, err := monitor.Connect(ctx, monitorSocket(c), monitor.ClientOptions{Build: "crid check"})
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer client.Close()
	listed, err := client.List(ctx)
	if err != nil {
		return nil, err
	}
	table := map[string]monitor.ListItem{}
	for _, l := range listed {
		l.Hold.Close()
		table[l.ID] = l.ListItem
	}
	return table, nil
}

// ownCgroups are the cgroups of containers and holders below the default parent.
// Those below kubelet's are found through their records.
func ownCgroups(c Config) (map[string]string, error) {
	parent := c.CgroupParent
	switch {
	case parent == "" && c.cgroupDriver() == driverSystemd:
		parent = "crid.slice"
	case parent == "":
		parent = "/crid"
	}
	dirs, err := sys.CgroupDirs(parent)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for _, dir := range dirs {
		for _, name := range names(dir) {
			id, ok := strings.CutPrefix(strings.TrimSuffix(name, ".scope"), "crid-")
			if ok {
				found[strings.TrimPrefix(id, "hold-")] = filepath.Join(dir, name)
			}
		}
	}
	return found, nil
}

// names lists a folder; one that is not there is empty.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	all := make([]string, 0, len(entries))
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}

// differences are whole sentences, sorted.
func (v *view) differences() []string {
	found := slices.Concat(v.unreadable, v.images)
	for _, name := range names(filepath.Join(v.config.Root, "quarantine")) {
		path := filepath.Join(v.config.Root, "quarantine", name)
		if strings.HasPrefix(name, "sandbox-") || strings.HasPrefix(name, "container-") {
			found = append(found, fmt.Sprintf("record %s %s because it could not be read; delete it once you know why", path, setAside))
			continue
		}
		found = append(found, fmt.Sprintf("image sha256:%s %s because its record or a layer was damaged; pull it again, or delete %s",
			strings.TrimSuffix(name, ".json"), setAside, path))
	}
	say := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	v.checkSandboxes(say)
	v.checkContainers(say)
	for id, item := range v.monitor {
		if !v.known(id) {
			say("%s: crid-monitor has it (process %d), there is no record", id, item.PID)
		}
	}
	for id, dir := range v.cgroups {
		if !v.known(id) {
			say("%s: there is a cgroup %s, there is no record", id, dir)
		}
	}
	for _, id := range v.netns {
		if _, ok := v.sandboxes[id]; !ok {
			say("%s: there is a network namespace %s, there is no record", id, filepath.Join(v.config.NetNSDir, "crid-"+id))
		}
	}
	for id, dir := range v.folders {
		if !v.known(image.VolumeOwner(id)) {
			say("%s: there is a folder %s, there is no record", id, dir)
		}
	}
	slices.Sort(found)
	return found
}

func (v *view) known(id string) bool {
	_, isSandbox := v.sandboxes[id]
	_, isContainer := v.containers[id]
	return isSandbox || isContainer
}

func (v *view) checkSandboxes(say func(string, ...any)) {
	for id, s := range v.sandboxes {
		if s.State != "ready" || s.BootID != v.bootID {
			continue
		}
		if s.NetNS != "" && !v.mounts[s.NetNS] {
			say("%s: the sandbox is ready, its network namespace %s is gone", id, s.NetNS)
		}
		if s.Holder != nil && v.monitor[id].PID != s.Holder.PID {
			say("%s: the sandbox is ready, the holder of its PID namespace (process %d) is not with crid-monitor", id, s.Holder.PID)
		}
	}
}

func (v *view) checkContainers(say func(string, ...any)) {
	for id, c := range v.containers {
		if _, ok := v.sandboxes[c.Sandbox]; !ok {
			say("%s: the container's sandbox %s has no record", id, c.Sandbox)
		}
		alive := c.State == "created" || c.State == "running"
		item, listed := v.monitor[id]
		switch {
		case !alive || c.BootID != v.bootID:
		case !listed:
			say("%s: the container is %s, crid-monitor does not have it", id, c.State)
		case item.Exit != nil:
			say("%s: the container is %s, crid-monitor says that it ended with code %d", id, c.State, item.Exit.Code)
		}
	}
}
