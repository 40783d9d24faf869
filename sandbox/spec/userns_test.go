package spec

import (
	"strings"
	"testing"

	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/sandbox/config"
)

// TestUserNamespaceRefuses: what does not fit the pod's user namespace is Invalid
// and named.
func TestUserNamespaceRefuses(t *testing.T) {
	id := func(n int64) *int64 { return &n }
	other := &config.IDMaps{UIDs: config.IDMapping{HostID: 9, Length: 9}, GIDs: config.IDMapping{HostID: 327680, Length: 65536}}
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   string // beginning of the error
	}{
		{"another namespace", func(in *Input) { in.Container.Security.Namespaces.UserMap = other }, fieldUserNS},
		{"the node's", func(in *Input) {
			in.Container.Security.Namespaces.User, in.Container.Security.Namespaces.UserMap = config.NamespaceNode, nil
		}, fieldUserNS},
		{"one in a pod without", func(in *Input) { in.Sandbox.Namespaces.User, in.Sandbox.Namespaces.UserMap = config.NamespaceNode, nil }, fieldUserNS},
		{"a map in a pod without", func(in *Input) {
			in.Sandbox.Namespaces.User, in.Sandbox.Namespaces.UserMap = "", nil
			in.Container.Security.Namespaces = config.Namespaces{PID: config.NamespaceContainer}
		}, "config.mounts[0].uidMappings: "},
		{"the node's processes", func(in *Input) { in.Container.Security.Namespaces.PID = config.NamespaceNode }, "config.linux.security_context.namespace_options.pid: "},
		{"user", func(in *Input) { in.Container.Security.RunAsUser = id(65536) }, "config.linux.security_context.run_as_user: 65536 is not"},
		{"group", func(in *Input) { in.Container.Security.RunAsGroup = id(65536) }, "config.linux.security_context.run_as_group: "},
		{"groups", func(in *Input) { in.Container.Security.SupplementalGroups = []int64{1, 70000} }, "config.linux.security_context.supplemental_groups[1]: "},
		{"image's user", func(in *Input) { in.Container.Security.RunAsUser, in.Image.User = nil, "70000" }, "user of the image: "},
		{"image's group", func(in *Input) { in.Container.Security.RunAsUser, in.Image.User = nil, "33:70000" }, "group of the image: "},
		{"groups of the image's user", func(in *Input) { in.Group = []byte("big:x:70000:www\n") }, "groups of the image's user: "},
		{"users of a mount", func(in *Input) { in.Container.Mounts[0].IDMap = other }, "config.mounts[0].uidMappings: "},
		{"groups of a mount", func(in *Input) {
			in.Container.Mounts[0].IDMap = &config.IDMaps{UIDs: in.Sandbox.Namespaces.UserMap.UIDs}
		}, "config.mounts[0].gidMappings: "},
		{"propagation", func(in *Input) { in.Container.Mounts[1].Propagation = config.PropagationBidirectional }, "config.mounts[1].propagation: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := readInput(t, "testdata/userns.in.json")
			tt.change(&in)
			_, err := Build(in)
			if !errkind.Is(err, errkind.Invalid) || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("Build = %v, want Invalid that begins with %q", err, tt.want)
			}
		})
	}
}

// TestUserNamespaceOfThePod: a container that does not say gets the pod's.
func TestUserNamespaceOfThePod(t *testing.T) {
	in := readInput(t, "testdata/userns.in.json")
	want, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	in.Container.Security.Namespaces = config.Namespaces{PID: config.NamespaceContainer}
	got, err := Build(in)
	if err != nil || len(got.Spec.Linux.UIDMappings) != 1 || len(got.Spec.Linux.Namespaces) != len(want.Spec.Linux.Namespaces) {
		t.Errorf("Build = %+v, %v, want the namespaces of %+v", got.Spec, err, want.Spec)
	}
}
