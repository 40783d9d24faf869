package sandbox_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/sandboxtest"
)

// vendor has one device, "vendor.com/thing=one".
type vendor struct{}

func (vendor) Inject(_ klog.Logger, spec *specs.Spec, names []string) error {
	if !slices.Equal(names, []string{"vendor.com/thing=one"}) {
		return errkind.Errorf(errkind.Invalid, "CDI devices %s: not there", strings.Join(names, ", "))
	}
	spec.Process.Env = append(spec.Process.Env, "THING=one")
	spec.Process.User.AdditionalGids = append(spec.Process.User.AdditionalGids, 4321)
	return nil
}

func TestCDIDevices(t *testing.T) {
	n := sandboxtest.New(t, func(o *sandbox.Options) { o.Devices = vendor{} })
	c := sandboxtest.Container("main")
	c.CDIDevices = []string{"vendor.com/thing=one"}
	pod, id := mustLive(t, n, sandboxtest.Pod("web"), c)
	r, _ := n.Monitor.Created(string(id))
	var spec specs.Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(spec.Process.Env, "THING=one") {
		t.Errorf("environment = %q, want the device's variable in it", spec.Process.Env)
	}
	if st := status(t, n, id); !slices.Contains(st.User.Groups, 4321) {
		t.Errorf("groups in the status = %v, want the device's among them", st.User.Groups)
	}
	c.Name, c.CDIDevices = "other", []string{"vendor.com/thing=two"}
	if _, err := n.Manager.Create(t.Context(), string(pod), c); !errkind.Is(err, errkind.Invalid) || !strings.Contains(err.Error(), "vendor.com/thing=two") {
		t.Errorf("Create with a device that is not there = %v, want Invalid that names it", err)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}

func TestNoCDI(t *testing.T) {
	n := sandboxtest.New(t)
	pod, _ := mustLive(t, n, sandboxtest.Pod("web"), sandboxtest.Container("main"))
	c := sandboxtest.Container("other")
	c.CDIDevices = []string{"vendor.com/thing=one"}
	if _, err := n.Manager.Create(t.Context(), string(pod), c); !errkind.Is(err, errkind.Invalid) {
		t.Errorf("Create with a device where there are none = %v, want Invalid", err)
	}
	mustRemove(t, n, pod)
	mustBeClean(t, n)
}
