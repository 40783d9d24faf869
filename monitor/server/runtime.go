package server

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules, v1 and v2
	"github.com/opencontainers/cgroups/manager"
	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/quiet"
	"github.com/cridproject/crid/monitor"
	"github.com/cridproject/crid/monitor/server/filter"
)

// Init is the mode in which libcontainer starts this program again, as the first
// process of each container and exec. It does not return.
//
// Such a process has the write end of a pipe as descriptor statusFD. It closes
// when the process executes its program; before that, it takes the error that
// libcontainer would else print into the container's own stderr. So the monitor
// knows when a program has been executed, or why not.
func Init() {
	unix.CloseOnExec(statusFD)
	filter.Use(filterFD)
	os.Stderr = os.NewFile(statusFD, "status")
	libcontainer.Init()
}

// The first descriptors after the standard ones: libcontainer puts a process's
// extra files there. The second is the recording of its seccomp filter, or the
// status pipe again.
const statusFD, filterFD = 3, 4

// Names in libcontainer's folder of a container. The first two are
// libcontainer's own, part of its state on disk.
const (
	fifoName     = "exec.fifo" // the first process waits for someone to open it
	stateName    = "state.json"
	processName  = "crid-process.json" // the spec's process, for execs
	doomName     = "crid-start-error"  // why Start will fail
	poststopName = "crid-poststop"     // there are hooks to run at the end
)

// ociRuntime is libcontainer.
type ociRuntime struct {
	root         string          // libcontainer's state, a folder for each container
	left         quiet.Collector // also of descriptors, see create
	noNewKeyring bool
	limits       limits
	filters      filter.Cache
	reaper       *reaper
	slots        chan struct{} // limits how many processes are being started
}

// launch is what a process to be started gets.
type launch struct {
	stdin, stdout, stderr *os.File
	console               *os.File // socket for the pty's master; nil without a terminal
	status                *os.File // becomes statusFD
	filter                *os.File // becomes filterFD; may be nil
}

// created is a container that waits to be started.
type created struct {
	pid    int    // of its first process, for which the reaper waits
	began  uint64 // as in procStat
	cgroup *cgroup
}

// create makes a container whose first process waits for start. On error
// nothing of it is left.
//
// libcontainer leaves descriptors to Go's collector: a pidfd of each process that it
// starts, since that is closed by a wait of who started it, and waiting is the
// reaper's here; a fifo of each container that could not be made.
func (r *ociRuntime) create(id string, spec *specs.Spec, systemd bool, io launch) (_ *created, err error) {
	defer r.left.Worked()
	r.limits.clamp(spec)
	config, err := convert(&specconv.CreateOpts{
		CgroupName:       id,
		UseSystemdCgroup: systemd,
		NoNewKeyring:     r.noNewKeyring,
		Spec:             spec,
	})
	if err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "convert OCI spec: %w", err)
	}
	p, err := newProcess(spec.Process)
	if err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "convert OCI spec: %w", err)
	}
	p.Init = true
	if err := ownStdio(config, p.UID, io); err != nil {
		return nil, err
	}
	uid, gid, err := hostIDs(config, p)
	if err != nil {
		return nil, err
	}
	if err := ownWorkingDir(spec.Root.Path, p.Cwd, uid, gid); err != nil {
		return nil, err
	}

	release := r.slot()
	defer release()
	defer r.reaper.begin()()
	c, err := libcontainer.Create(r.root, id, config)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.undo(c, id))
		}
	}()
	io.filter = r.filterFor(id, config.Seccomp)
	defer io.filter.Close()
	io.set(p)
	err = c.Start(p)
	if doom := lookupError(err, p.Args); doom != "" {
		c, err = r.createDoomed(c, id, config, *p, doom, io)
	}
	if err != nil {
		return nil, createError(err, spec)
	}
	if err := writeJSON(filepath.Join(r.root, id, processName), spec.Process); err != nil {
		return nil, err
	}
	if spec.Hooks != nil && len(spec.Hooks.Poststop) > 0 {
		if err := writeJSON(filepath.Join(r.root, id, poststopName), true); err != nil {
			return nil, err
		}
	}
	state, err := c.State()
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	cg, err := cgroupOf(state)
	if err != nil {
		return nil, err
	}
	r.reaper.add(state.InitProcessPid)
	return &created{state.InitProcessPid, state.InitProcessStartTime, cg}, nil
}

// undo removes a container that could not be created.
func (r *ociRuntime) undo(c *libcontainer.Container, id string) error {
	_ = c.Signal(unix.SIGKILL)
	if err := c.Destroy(); err != nil {
		return errors.Join(fmt.Errorf("undo create: %w", err), os.RemoveAll(filepath.Join(r.root, id)))
	}
	return nil
}

// createDoomed makes the container again, with a program in the place of the one
// that is not there. CRI wants such containers to be created and to fail at
// start, with the reason in their status. The program in its place is never
// executed.
func (r *ociRuntime) createDoomed(c *libcontainer.Container, id string, config *configs.Config,
	stand libcontainer.Process, doom string, io launch,
) (*libcontainer.Container, error) {
	if err := c.Destroy(); err != nil {
		return c, err
	}
	c2, err := libcontainer.Create(r.root, id, config)
	if err != nil {
		return c, err
	}
	// Executable in every container that has /proc: it is this program.
	stand.Args = []string{"/proc/self/exe"}
	io.set(&stand)
	if err := c2.Start(&stand); err != nil {
		return c2, errkind.New(errkind.Invalid, errors.New(doom))
	}
	return c2, os.WriteFile(filepath.Join(r.root, id, doomName), []byte(doom), 0o600)
}

// lookupError is the text with which libcontainer says that the program is not
// there or cannot be executed, "" when err is something else.
func lookupError(err error, args []string) string {
	if err == nil || len(args) == 0 {
		return ""
	}
	text := err.Error()
	// As the error of package os/exec, which libcontainer's init looks it up with.
	i := strings.Index(text, "exec: "+strconv.Quote(args[0])+": ")
	if i < 0 {
		return ""
	}
	return text[i:]
}

// exec starts one more process in a container, for which the reaper waits. The
// status pipe says when its program has been executed.
func (r *ociRuntime) exec(x monitor.ExecRequest, io launch) (pid int, err error) {
	defer r.left.Worked()
	id, args := x.ID, x.Args
	release := r.slot()
	defer release()
	defer r.reaper.begin()()
	c, err := r.load(id)
	if err != nil {
		return 0, err
	}
	var sp specs.Process
	if err := readJSON(filepath.Join(r.root, id, processName), &sp); err != nil {
		return 0, err
	}
	sp.Args, sp.ConsoleSize = args, nil
	if x.Rows > 0 && x.Columns > 0 {
		sp.ConsoleSize = &specs.Box{Height: uint(x.Rows), Width: uint(x.Columns)}
	}
	if x.TTY && !slices.ContainsFunc(sp.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		sp.Env = append(sp.Env, "TERM=xterm")
	}
	p, err := newProcess(&sp)
	if err != nil {
		return 0, fmt.Errorf("exec in container: %w", err)
	}
	config := c.Config()
	if err := ownStdio(&config, p.UID, io); err != nil {
		return 0, err
	}
	io.filter = r.filterFor(id, config.Seccomp)
	defer io.filter.Close()
	io.set(p)
	err = c.Start(p)
	if text := lookupError(err, args); text != "" {
		return 0, errkind.New(errkind.Invalid, errors.New(text))
	}
	if err != nil {
		return 0, fmt.Errorf("exec in container: %w", err)
	}
	if pid, err = p.Pid(); err != nil {
		return 0, fmt.Errorf("exec in container: %w", err)
	}
	r.reaper.add(pid)
	return pid, nil
}

// load reads a container's state. It is read for each use, not kept: the config
// with its seccomp profile is most of what a container would cost in memory,
// and separate objects let execs in one container start side by side.
func (r *ociRuntime) load(id string) (*libcontainer.Container, error) {
	c, err := libcontainer.Load(r.root, id)
	if errors.Is(err, libcontainer.ErrNotExist) {
		return nil, errkind.Errorf(errkind.NotFound, "no state of container %s in %s", id, r.root)
	}
	if err != nil {
		return nil, fmt.Errorf("load container: %w", err)
	}
	return c, nil
}

// restore is the cgroup of a container that another monitor made, the pid of
// its first process and the time when that started.
func (r *ociRuntime) restore(id string) (*cgroup, int, uint64, error) {
	c, err := r.load(id)
	if err != nil {
		return nil, 0, 0, err
	}
	state, err := c.State()
	if err != nil {
		return nil, 0, 0, fmt.Errorf("load container: %w", err)
	}
	cg, err := cgroupOf(state)
	return cg, state.InitProcessPid, state.InitProcessStartTime, err
}

// cgroupOf keeps of the config what the cgroup manager needs.
func cgroupOf(state *libcontainer.State) (*cgroup, error) {
	cg := *state.Config.Cgroups
	cg.Resources = &cgroups.Resources{}
	cg.SystemdProps = nil
	m, err := manager.NewWithPaths(&cg, state.CgroupPaths)
	if err != nil {
		return nil, fmt.Errorf("cgroup of container: %w", err)
	}
	return &cgroup{m}, nil
}

// update sets new resource limits, all of them or none. Device rules stay as they
// are. Execs to come get the oom score.
func (r *ociRuntime) update(c *container, res *specs.LinuxResources, oom *int) error {
	lc, err := r.load(c.id)
	if err != nil {
		return err
	}
	if err := c.cgroup.fits(res.Memory); err != nil {
		return err
	}
	wanted, err := cgroupResources(c.id, res)
	if err != nil {
		return errkind.Errorf(errkind.Invalid, "convert resources: %w", err)
	}
	config := lc.Config()
	cg := *config.Cgroups
	wanted.Devices = cg.Resources.Devices // not set, but kept in the state
	cg.Resources = wanted
	config.Cgroups = &cg
	if oom != nil {
		config.OomScoreAdj = oom
	}
	before := c.cgroup.before(res)
	if err = lc.Set(config); err == nil {
		return nil
	}
	// libcontainer has set back what the old config names, and not what had no
	// limit before.
	undo, undoErr := cgroupResources(c.id, before)
	if undoErr == nil {
		undoErr = c.cgroup.m.Set(undo)
	}
	if undoErr != nil {
		err = fmt.Errorf("%w (and setting back what was: %w)", err, undoErr)
	}
	switch {
	case errors.Is(err, libcontainer.ErrNotRunning):
		return errkind.Errorf(errkind.BadState, "update resources: %w", err)
	case errors.Is(err, cgroups.ErrV1NoUnified):
		return errkind.New(errkind.Invalid, err)
	case errors.Is(err, unix.EBUSY), strings.Contains(err.Error(), "unable to set memory limit"):
		return errkind.Errorf(errkind.BadState, "update resources: more memory is in use than the new limit allows: %w", err)
	}
	if refused := refusedValue(err, "linux.", res); refused != nil {
		return refused
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE) {
		return errkind.Errorf(errkind.Invalid, "update resources: the kernel does not take one of the values: %w", err)
	}
	return fmt.Errorf("update resources: %w", err)
}

// cgroupResources is res as the cgroup manager takes it, without device rules.
func cgroupResources(id string, res *specs.LinuxResources) (*cgroups.Resources, error) {
	c, err := specconv.CreateCgroupConfig(&specconv.CreateOpts{CgroupName: id, Spec: &specs.Spec{Linux: &specs.Linux{Resources: res}}}, nil)
	if err != nil {
		return nil, err
	}
	c.Resources.Devices, c.Resources.SkipDevices = nil, true
	return c.Resources, nil
}

// forget removes a container's state. Poststop hooks, which only device
// injection uses, run first.
func (r *ociRuntime) forget(id string) error {
	dir := filepath.Join(r.root, id)
	if _, err := os.Lstat(filepath.Join(dir, poststopName)); err == nil {
		if c, err := r.load(id); err == nil {
			defer r.reaper.begin()()
			if err := c.Destroy(); err != nil {
				return fmt.Errorf("remove container: %w", err)
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove state of container: %w", err)
	}
	return nil
}

// set gives a process its files.
func (io launch) set(p *libcontainer.Process) {
	// Only what is there: a nil *os.File in an interface is not nil.
	if io.console == nil {
		p.Stdin, p.Stdout, p.Stderr = io.stdin, io.stdout, io.stderr
	}
	p.ConsoleSocket = io.console
	p.ExtraFiles = []*os.File{io.status, cmp.Or(io.filter, io.status)}
}

// hostIDs are the process's user and group as the node has them.
func hostIDs(config *configs.Config, p *libcontainer.Process) (uid, gid int, err error) {
	uid, err = config.HostUID(p.UID)
	if err == nil {
		gid, err = config.HostGID(p.GID)
	}
	if err != nil {
		return 0, 0, errkind.Errorf(errkind.Invalid, "user of the container: %w", err)
	}
	return uid, gid, nil
}

// ownStdio makes the container's user the owner of its pipes, so that it can
// open /dev/stdout again. libcontainer's init does that too, but not for stderr,
// which it takes for the status pipe.
func ownStdio(config *configs.Config, uid int, io launch) error {
	if io.console != nil {
		return nil // the pty is made inside
	}
	host, err := config.HostUID(uid)
	if err != nil {
		return errkind.Errorf(errkind.Invalid, "owner of standard files: %w", err)
	}
	for _, f := range []*os.File{io.stdout, io.stderr} {
		raw, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("owner of standard files: %w", err)
		}
		_ = raw.Control(func(fd uintptr) {
			var st unix.Stat_t
			// Pipes only: a device or a file is not the container's to own.
			if unix.Fstat(int(fd), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && int(st.Uid) != host {
				_ = unix.Fchown(int(fd), host, -1)
			}
		})
	}
	return nil
}

// newProcess is a spec's process as libcontainer wants it.
func newProcess(p *specs.Process) (*libcontainer.Process, error) {
	if p == nil || len(p.Args) == 0 || p.Args[0] == "" {
		return nil, errors.New("process has no args")
	}
	if !filepath.IsAbs(p.Cwd) {
		return nil, fmt.Errorf("process: cwd %q is not absolute", p.Cwd)
	}
	lp := &libcontainer.Process{
		Args:            p.Args,
		Env:             p.Env,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		Cwd:             p.Cwd,
		Label:           p.SelinuxLabel,
		NoNewPrivileges: &p.NoNewPrivileges,
		AppArmorProfile: p.ApparmorProfile,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
	}
	if s := p.ConsoleSize; s != nil {
		lp.ConsoleWidth = uint16(min(s.Width, math.MaxUint16))
		lp.ConsoleHeight = uint16(min(s.Height, math.MaxUint16))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable,
			Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, g := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(g))
	}
	for _, l := range p.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			return nil, fmt.Errorf("process: no rlimit %q", l.Type)
		}
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: n, Soft: l.Soft, Hard: l.Hard})
	}
	var err error
	lp.CPUAffinity, err = configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	return lp, err
}

func writeJSON(path string, v any) error {
	b, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write container state: %w", err)
	}
	return nil
}

func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		return fmt.Errorf("read container state: %w", err)
	}
	return nil
}
