package server

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	profiles "github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/cridproject/crid/internal/testutil"
	"github.com/cridproject/crid/monitor/server/filter"
)

// Set in processes that compile a filter for a test.
const (
	useEnv  = "CRID_TEST_FILTER_USE"  // descriptor 3 is a recording
	loadEnv = "CRID_TEST_FILTER_LOAD" // load the filter for real and try it
)

// recordInTest is RecordFilter, but for what the environment says.
func recordInTest() {
	if os.Getenv(useEnv) != "" {
		filter.Use(3)
	}
	if os.Getenv(loadEnv) == "" {
		RecordFilter()
	}
	var c configs.Seccomp
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		panic(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	if _, err := seccomp.InitSeccomp(&c); err != nil {
		panic(err)
	}
	// What the filter allows, what it forbids, what is in none of its rules but
	// known, and what is newer than all of them.
	_, _, allowed := unix.Syscall(unix.SYS_GETPPID, 0, 0, 0)
	_, _, forbidden := unix.Syscall6(unix.SYS_MOUNT, 0, 0, 0, 0, 0, 0)
	_, _, newer := unix.Syscall(5000, 0, 0, 0)
	fmt.Printf("%d %d %d", allowed, forbidden, newer)
	os.Exit(0)
}

// recording is what filter.Record writes.
type recording struct {
	raw, program []byte
	kept         bool
}

// compile has a process make a filter, from the recording use where it is not nil.
func compile(t *testing.T, config *configs.Seccomp, use *os.File, env ...string) ([]byte, error) {
	t.Helper()
	data, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	var out, text bytes.Buffer
	cmd := recordCommand(t.Context())
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = bytes.NewReader(data), &out, &text, append(os.Environ(), env...)
	if use != nil {
		cmd.Env, cmd.ExtraFiles = append(cmd.Env, useEnv+"=1"), []*os.File{use}
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, text.String())
	}
	return out.Bytes(), nil
}

func recorded(t *testing.T, config *configs.Seccomp, use *os.File) recording {
	t.Helper()
	raw, err := compile(t, config, use)
	if err != nil {
		t.Fatal(err)
	}
	// As in wrap.h: magic, version, architecture, sizes of calls and program, kept, 0.
	var header [6]uint32
	if err := binary.Read(bytes.NewReader(raw[8:32]), binary.NativeEndian, &header); err != nil {
		t.Fatal(err)
	}
	calls, program := int(header[2]), int(header[3])
	if len(raw) != 32+calls+program || program == 0 || program%8 != 0 {
		t.Fatalf("recording of %d bytes says %d of calls, %d of program", len(raw), calls, program)
	}
	return recording{raw: raw, program: raw[32+calls:], kept: header[4] != 0}
}

func sealedFile(t *testing.T, data []byte, seal bool) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "test")
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	if seal {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

// defaultFilter is the default profile for a container with these capabilities.
func defaultFilter(t *testing.T, caps ...string) *configs.Seccomp {
	t.Helper()
	s, err := profiles.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	c, err := specconv.SetupSeccomp(s)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestKeptFilterIsTheCompiledOne: with a recording of the same filter the program
// is the recorded one, with any other recording it is the compiled one.
func TestKeptFilterIsTheCompiledOne(t *testing.T) {
	testutil.RequireRoot(t)
	errno := uint(28)
	call := func(name string, action configs.Action, args ...*configs.Arg) *configs.Syscall {
		return &configs.Syscall{Name: name, Action: action, Args: args}
	}
	small := func(change func(*configs.Seccomp)) *configs.Seccomp {
		c := &configs.Seccomp{
			DefaultAction: configs.Allow,
			Syscalls: []*configs.Syscall{
				call("mkdir", configs.Errno),
				call("clone", configs.Errno, &configs.Arg{Index: 0, Value: 0x10000000, ValueTwo: 0x10000000, Op: configs.MaskEqualTo}),
				// Twice the same argument: two rules.
				call("personality", configs.Errno, &configs.Arg{Value: 1, Op: configs.EqualTo}, &configs.Arg{Value: 2, Op: configs.EqualTo}),
			},
		}
		change(c)
		return c
	}
	filters := map[string]*configs.Seccomp{
		"default":           defaultFilter(t),
		"default SYS_ADMIN": defaultFilter(t, "CAP_SYS_ADMIN"),
		"small":             small(func(*configs.Seccomp) {}),
		"shorter":           small(func(c *configs.Seccomp) { c.Syscalls = c.Syscalls[:2] }),
		"longer":            small(func(c *configs.Seccomp) { c.Syscalls = append(c.Syscalls, call("rmdir", configs.Errno)) }),
		"first differs":     small(func(c *configs.Seccomp) { c.Syscalls[0].Name = "rmdir" }),
		"argument differs":  small(func(c *configs.Seccomp) { c.Syscalls[1].Args[0].Value = 1 }),
		"operator differs":  small(func(c *configs.Seccomp) { c.Syscalls[1].Args[0].Op = configs.EqualTo }),
		"errno differs":     small(func(c *configs.Seccomp) { c.Syscalls[0].ErrnoRet = &errno }),
		"action differs":    small(func(c *configs.Seccomp) { c.Syscalls[0].Action = configs.KillProcess }),
		"default differs":   small(func(c *configs.Seccomp) { c.DefaultAction = configs.Log }),
		"flag":              small(func(c *configs.Seccomp) { c.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog} }),
		"architecture":      small(func(c *configs.Seccomp) { c.Architectures = []string{"arm64"} }),
	}
	compiled := map[string]recording{}
	for name, config := range filters {
		if compiled[name] = recorded(t, config, nil); compiled[name].kept {
			t.Errorf("%s: kept, where there is nothing to keep", name)
		}
	}
	programs := map[string]string{}
	for name, r := range compiled {
		if other, ok := programs[string(r.program)]; ok && name != "flag" && other != "flag" { // a flag is no part of a program
			t.Errorf("%s and %s have one program: the test compares nothing", name, other)
		}
		programs[string(r.program)] = name
	}
	for name, config := range filters {
		for _, of := range []string{name, "small", "default"} {
			r := recorded(t, config, sealedFile(t, compiled[of].raw, true))
			if !bytes.Equal(r.program, compiled[name].program) {
				t.Errorf("%s with the recording of %s: another program than the compiled one", name, of)
			}
			if r.kept != (of == name) {
				t.Errorf("%s with the recording of %s: kept = %v", name, of, r.kept)
			}
		}
	}
	good := compiled["small"].raw
	for what, f := range map[string]*os.File{
		"not sealed": sealedFile(t, good, false),
		"cut off":    sealedFile(t, good[:len(good)-8], true),
		"longer":     sealedFile(t, append(bytes.Clone(good), 0), true),
		"no header":  sealedFile(t, good[:20], true),
		"empty":      sealedFile(t, nil, true),
		"other":      sealedFile(t, append([]byte("xxxxxxxx"), good[8:]...), true),
	} {
		if r := recorded(t, filters["small"], f); r.kept || !bytes.Equal(r.program, compiled["small"].program) {
			t.Errorf("a recording that is %s: kept = %v", what, r.kept)
		}
	}
}

// TestKeptFilterFilters: a kept filter forbids what the compiled one forbids, and
// says ENOSYS for system calls that are newer than it.
func TestKeptFilterFilters(t *testing.T) {
	testutil.RequireRoot(t)
	config := defaultFilter(t)
	r := recorded(t, config, nil)
	want := fmt.Sprintf("0 %d %d", unix.EPERM, unix.ENOSYS)
	for what, use := range map[string]*os.File{"compiled": nil, "kept": sealedFile(t, r.raw, true)} {
		got, err := compile(t, config, use, loadEnv+"=1")
		if err != nil || string(got) != want {
			t.Errorf("%s: %q, %v, want %q", what, got, err, want)
		}
	}
}

// TestFilterCache: one process for each filter, whoever asks when; a failure is
// not kept.
func TestFilterCache(t *testing.T) {
	testutil.RequireRoot(t)
	config, err := json.Marshal(defaultFilter(t))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	started, fail := 0, true
	c := filter.Cache{Command: func(ctx context.Context) *exec.Cmd {
		mu.Lock()
		defer mu.Unlock()
		started++
		if fail {
			return exec.CommandContext(ctx, "/bin/false")
		}
		return recordCommand(ctx)
	}}
	get := func(data []byte, err error) *os.File {
		return c.Get(t.Context(), filter.KeyOf(data), func() ([]byte, error) { return data, err })
	}
	if get(config, nil) != nil || get(config, errors.New("no configuration")) != nil || get([]byte("x"), nil) != nil {
		t.Error("Get of what cannot be made = a file, want nil")
	}
	fail, started = false, 0
	var wg sync.WaitGroup
	files := make([]*os.File, 8)
	for i := range files {
		wg.Go(func() { files[i] = get(config, nil) })
	}
	wg.Wait()
	for _, f := range files {
		if f == nil {
			t.Fatalf("Get = nil, want a recording")
		}
		if _, err := f.WriteAt([]byte("x"), 0); err == nil {
			t.Error("a recording can be written to")
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if started != 1 {
		t.Errorf("%d processes compiled one filter, want 1", started)
	}
	if get([]byte(`{"default_action": 1000}`), nil) != nil {
		t.Error("Get of a filter that libcontainer refuses = a file, want nil")
	}
}
