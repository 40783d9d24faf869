//lint:file-ignore SA1019 clients still send the profile fields that SecurityProfile replaced

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// hasAppArmor reports whether this kernel confines programs by AppArmor.
func hasAppArmor() bool {
	enabled, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	_, err := os.Stat("/sys/kernel/security/apparmor/profiles")
	return strings.TrimSpace(string(enabled)) == "Y" && err == nil
}

func apparmorParser(t *testing.T, option, profile string) error {
	t.Helper()
	cmd := exec.Command("apparmor_parser", option, "--skip-cache")
	cmd.Stdin = strings.NewReader(profile)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("apparmor_parser %s: %w: %s", option, err, out)
	}
	return nil
}

// wantConfined looks from inside at the first process and at an exec.
func (n *Node) wantConfined(t *testing.T, id, want string) {
	t.Helper()
	for _, pid := range []string{"1", "self"} {
		if got := strings.TrimSpace(n.Exec(id, "cat", "/proc/"+pid+"/attr/current")); got != want {
			t.Errorf("AppArmor confines %s by %q, want %q", pid, got, want)
		}
	}
}

func TestAppArmor(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor; TestAppArmorAbsent runs instead")
	}
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	name := strings.ReplaceAll("crid-e2e-"+n.Bridge, " ", "")
	profile := "profile " + name + " flags=(attach_disconnected,mediate_deleted) {\n" +
		"  file,\n  capability,\n  network,\n  signal,\n  ptrace,\n  umount,\n  deny /tmp/** w,\n}\n"
	if err := apparmorParser(t, "--replace", profile); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := apparmorParser(t, "--remove", profile); err != nil {
			t.Error(err)
		}
	})
	p := n.PodConfig("apparmor")
	p.Linux.SecurityContext.Privileged = true
	pod := n.RunPod(p)
	localhost := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: name}
	const byDefault, unconfined = "crid-default (enforce)", "unconfined"
	// Opens for writing, which the default profile denies, and writes nothing.
	const sysctl = ": > /proc/sys/vm/drop_caches"
	for i, test := range []struct {
		name       string
		profile    *cri.SecurityProfile
		old        string
		privileged bool
		want, bars string
	}{
		{name: "none", want: byDefault, bars: sysctl},
		{name: "default", profile: &cri.SecurityProfile{}, want: byDefault, bars: sysctl},
		{name: "old default", old: "runtime/default", want: byDefault, bars: sysctl},
		{name: "unconfined", profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, want: unconfined},
		{name: "old unconfined", old: "unconfined", want: unconfined},
		{name: "privileged", profile: localhost, privileged: true, want: unconfined},
		{name: "localhost", profile: localhost, want: name + " (enforce)", bars: "touch /tmp/x"},
		{name: "localhost with prefix", profile: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "localhost/" + name}, want: name + " (enforce)"},
		{name: "old localhost", old: "localhost/" + name, want: name + " (enforce)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := n.ContainerConfig(fmt.Sprint("c", i), "sleep", "1000")
			sc := c.Linux.SecurityContext
			sc.Apparmor, sc.Privileged = test.profile, test.privileged
			sc.ApparmorProfile = test.old
			id := n.Run(pod, p, c)
			n.wantConfined(t, id, test.want)
			n.Sh(id, "touch /x")
			if test.want == unconfined {
				n.Sh(id, sysctl)
			}
			if test.bars != "" && !n.fails(id, test.bars) {
				t.Errorf("%q works", test.bars)
			}
		})
	}

	// Loaded again when somebody has removed it.
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("crid-default"), 0); err != nil {
		t.Fatal(err)
	}
	n.wantConfined(t, n.Run(pod, p, n.ContainerConfig("again", "sleep", "1000")), byDefault)

	c := n.ContainerConfig("missing", "true")
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "no-such-profile"}
	_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	wantCode(t, "CreateContainer with a profile that is not loaded", err, codes.InvalidArgument, "apparmor.localhost_ref", "no-such-profile", "apparmor_parser")
}

// A node whose apparmor_parser is missing cannot load the default profile: who
// asks for it is told, who does not runs without.
func TestAppArmorWithoutParser(t *testing.T) {
	if !hasAppArmor() {
		t.Skip("this kernel has no AppArmor; TestAppArmorAbsent runs instead")
	}
	// As it is where nothing has loaded it yet.
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte("crid-default"), 0); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	n := NewNode(t, NodeOptions{Env: []string{"PATH=/nowhere"}, NoNetwork: true})
	n.PullBusybox()
	p := n.PodConfig("noparser")
	p.Linux.SecurityContext.NamespaceOptions.Network = cri.NamespaceMode_NODE
	pod := n.RunPod(p)
	c := n.ContainerConfig("main", "sleep", "1000")
	n.wantConfined(t, n.Run(pod, p, c), "unconfined")
	if log := n.Log(); !strings.Contains(log, "AppArmor does not confine it") || !strings.Contains(log, "install the node's package apparmor") {
		t.Errorf("the log does not say that a container is not confined:\n%s", tail(log))
	}
	c = n.ContainerConfig("asked", "true")
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{}
	_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
	wantCode(t, "CreateContainer with RuntimeDefault", err, codes.InvalidArgument, "apparmor.profile_type", "apparmor_parser")
}

// Without AppArmor nobody is confined, and nobody gets less than what was asked for.
func TestAppArmorAbsent(t *testing.T) {
	if hasAppArmor() {
		t.Skip("this kernel has AppArmor; TestAppArmor runs instead")
	}
	n := NewNode(t, NodeOptions{})
	n.PullBusybox()
	p := n.PodConfig("noapparmor")
	pod := n.RunPod(p)
	c := n.ContainerConfig("unconfined", "true")
	c.Linux.SecurityContext.Apparmor = &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}
	if s := n.WaitExit(n.Run(pod, p, c)); s.ExitCode != 0 {
		t.Errorf("unconfined: exit code %d, %s", s.ExitCode, s.Message)
	}
	for field, profile := range map[string]*cri.SecurityProfile{
		"apparmor.profile_type":  {ProfileType: cri.SecurityProfile_RuntimeDefault},
		"apparmor.localhost_ref": {ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: "web"},
	} {
		c := n.ContainerConfig("confined", "true")
		c.Linux.SecurityContext.Apparmor = profile
		_, err := n.Runtime.CreateContainer(n.Ctx(), &cri.CreateContainerRequest{PodSandboxId: pod, Config: c, SandboxConfig: p})
		wantCode(t, "CreateContainer with a profile", err, codes.InvalidArgument, field, "no AppArmor")
	}
}
