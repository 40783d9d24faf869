package cri

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	noProcess = "about the sandbox's own process, which crid does not have"
	noImage   = "without image.image there is no image to mount; with it, see TestMountRoundTrip"
)

// ignored is every field of the requests with a walk of their own that has no
// effect, with the reason. A path stands for all below it.
var ignored = map[string]string{
	"RunPodSandboxRequest.config.windows":                                           "for nodes with Windows",
	"RunPodSandboxRequest.config.linux.security_context.run_as_user":                noProcess,
	"RunPodSandboxRequest.config.linux.security_context.supplemental_groups":        noProcess,
	"RunPodSandboxRequest.config.linux.security_context.supplemental_groups_policy": noProcess,
	"RunPodSandboxRequest.config.linux.security_context.seccomp":                    noProcess,
	"RunPodSandboxRequest.config.linux.security_context.apparmor":                   noProcess,
	"RunPodSandboxRequest.config.linux.security_context.seccomp_profile_path":       noProcess,

	"UpdateContainerResourcesRequest.windows":     "for nodes with Windows",
	"UpdateContainerResourcesRequest.annotations": "nothing reads them; they are not the container's",

	"CreateContainerRequest.sandbox_config":                           "the sandbox keeps the configuration that it was made with",
	"CreateContainerRequest.config.windows":                           "for nodes with Windows",
	"CreateContainerRequest.config.image.image_ref":                   "only for answers",
	"CreateContainerRequest.config.mounts.image.annotations":          noImage,
	"CreateContainerRequest.config.mounts.image.image_ref":            "only for answers",
	"CreateContainerRequest.config.mounts.image.runtime_handler":      noImage,
	"CreateContainerRequest.config.mounts.image.user_specified_image": noImage,
}

// samples are valid values for fields whose decoding is picky, so that they are
// seen to be decoded rather than refused. Without one, strings are "/sample",
// numbers 7, enums their second value, booleans the other one.
var samples = map[string]any{
	"config.hostname":              "sample",
	"config.port_mappings.host_ip": "192.0.2.7",
	"config.linux.sysctls":         map[string]string{"net.core.somaxconn": "7"},
	"config.linux.security_context.capabilities.add_capabilities":         "KILL",
	"config.linux.security_context.readonly_paths":                        "/sample",
	"config.linux.security_context.namespace_options.pid":                 int32(v1.NamespaceMode_NODE),
	"config.linux.security_context.namespace_options.network":             int32(v1.NamespaceMode_NODE),
	"config.linux.security_context.namespace_options.ipc":                 int32(v1.NamespaceMode_NODE),
	"config.linux.security_context.seccomp_profile_path":                  "unconfined",
	"config.linux.security_context.apparmor_profile":                      "unconfined",
	"config.linux.security_context.seccomp.profile_type":                  int32(v1.SecurityProfile_Unconfined),
	"config.linux.security_context.run_as_username":                       "sample",
	"config.linux.resources.cpuset_cpus":                                  "7",
	"config.linux.resources.cpuset_mems":                                  "7",
	"config.linux.resources.hugepage_limits.page_size":                    "7MB",
	"config.linux.resources.unified":                                      map[string]string{"memory.high": "7"},
	"config.linux.overhead.cpuset_cpus":                                   "7",
	"config.linux.overhead.cpuset_mems":                                   "7",
	"config.linux.overhead.hugepage_limits.page_size":                     "7MB",
	"config.linux.overhead.unified":                                       map[string]string{"memory.high": "7"},
	"config.CDI_devices.name":                                             "vendor.com/class=sample",
	"config.devices.permissions":                                          "rw",
	"config.log_path":                                                     "sample.log",
	"config.linux.security_context.namespace_options.userns_options":      nil,
	"config.linux.security_context.capabilities.drop_capabilities":        "KILL",
	"config.linux.security_context.capabilities.add_ambient_capabilities": "KILL",
}

// blamed are fields for which another one is refused: that with which they
// cannot go together.
var blamed = map[string]string{"config.mounts.image.image": "config.mounts.host_path"}

// TestFieldsOfRunPodSandbox sets one field of the API after the other and expects
// that the wanted sandbox changes, or that the field is refused by name. What
// does neither must be in the list of ignored fields, with its reason. So a
// field that the API gains fails here until someone decides.
func TestFieldsOfRunPodSandbox(t *testing.T) {
	walkFields(t, goodSandbox(), func(m proto.Message) (any, error) {
		d := &decoder{node: Node{SELinux: true, RecursiveReadOnly: true}}
		return d.sandbox(m.(*v1.RunPodSandboxRequest))
	})
}

func TestFieldsOfCreateContainer(t *testing.T) {
	walkFields(t, goodContainer(), func(m proto.Message) (any, error) {
		d := &decoder{node: Node{SELinux: true, RecursiveReadOnly: true}}
		r := m.(*v1.CreateContainerRequest)
		c, err := d.container(r)
		return []any{r.GetPodSandboxId(), c}, err // the handler passes the ID on
	})
}

func TestFieldsOfUpdateContainerResources(t *testing.T) {
	huge := []*v1.HugepageLimit{{PageSize: "2MB"}}
	good := &v1.UpdateContainerResourcesRequest{ContainerId: "c", Linux: &v1.LinuxContainerResources{HugepageLimits: huge}}
	walkFields(t, good, func(m proto.Message) (any, error) {
		r := m.(*v1.UpdateContainerResourcesRequest)
		change, err := (&decoder{}).update(r)
		return []any{r.GetContainerId(), change}, err
	})
}

func TestFieldsOfUpdatePodSandboxResources(t *testing.T) {
	huge := []*v1.HugepageLimit{{PageSize: "2MB"}}
	good := &v1.UpdatePodSandboxResourcesRequest{
		PodSandboxId: "s",
		Overhead:     &v1.LinuxContainerResources{HugepageLimits: huge}, Resources: &v1.LinuxContainerResources{HugepageLimits: huge},
	}
	walkFields(t, good, func(m proto.Message) (any, error) {
		r := m.(*v1.UpdatePodSandboxResourcesRequest)
		overhead, resources, err := (&decoder{}).updateSandbox(r)
		return []any{r.GetPodSandboxId(), overhead, resources}, err
	})
}

func walkFields(t *testing.T, good proto.Message, decode func(proto.Message) (any, error)) {
	t.Helper()
	want, err := decode(good)
	if err != nil {
		t.Fatalf("decoding the good request = %v, want no error", err)
	}
	message := string(good.ProtoReflect().Descriptor().Name())
	stale := make(map[string]bool)
	for path := range ignored {
		stale[path] = strings.HasPrefix(path, message+".")
	}
	leaves(good.ProtoReflect().Descriptor(), nil, func(path []protoreflect.FieldDescriptor) {
		name := pathName(path)
		m := proto.Clone(good)
		set(m.ProtoReflect(), path, name)
		got, err := decode(m)
		listed := lookup(ignored, message+"."+name)
		stale[listed] = false
		switch {
		case err != nil && !names(err.Error(), name) && !names(err.Error(), blamed[name]):
			t.Errorf("%s: decoding {%v} = %v, which does not name the field", name, m, err)
		case err != nil:
		case equalJSON(t, got, want) && listed == "":
			t.Errorf("%s has no effect and is not in the list of ignored fields", name)
		case !equalJSON(t, got, want) && listed != "":
			t.Errorf("%s has an effect, but is listed as ignored: %s", name, ignored[listed])
		}
	})
	for path, is := range stale {
		if is {
			t.Errorf("%s is listed as ignored, but is not in the API", path)
		}
	}
}

// leaves calls visit for each field that holds no message of its own.
func leaves(d protoreflect.MessageDescriptor, path []protoreflect.FieldDescriptor, visit func([]protoreflect.FieldDescriptor)) {
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		p := append(slices.Clone(path), f)
		if f.Message() != nil && !f.IsMap() {
			leaves(f.Message(), p, visit)
		} else {
			visit(p)
		}
	}
}

func pathName(path []protoreflect.FieldDescriptor) string {
	var names []string
	for _, f := range path {
		names = append(names, string(f.Name()))
	}
	name := strings.Join(names, ".")
	return strings.TrimSuffix(name, ".value") // of the message Int64Value, and of KeyValue
}

// set sets the field at path, in the first element of lists on the way.
func set(m protoreflect.Message, path []protoreflect.FieldDescriptor, name string) {
	f := path[0]
	switch {
	case len(path) > 1 && f.IsList():
		list := m.Mutable(f).List()
		if list.Len() == 0 {
			list.AppendMutable()
		}
		set(list.Get(0).Message(), path[1:], name)
	case len(path) > 1:
		set(m.Mutable(f).Message(), path[1:], name)
	case f.IsMap():
		entries, ok := sampleOf(name).(map[string]string)
		if !ok {
			entries = map[string]string{"sample": "value"}
		}
		for k, v := range entries {
			m.Mutable(f).Map().Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
		}
	case f.IsList():
		m.Mutable(f).List().Append(sample(f, protoreflect.Value{}, name))
	default:
		m.Set(f, sample(f, m.Get(f), name))
	}
}

// sampleOf finds the sample of a field; those of resources are the same everywhere.
func sampleOf(name string) any {
	for _, at := range []string{"linux.", "overhead.", "resources."} {
		if field, ok := strings.CutPrefix(name, at); ok {
			return samples["config.linux.resources."+field]
		}
	}
	return samples[name]
}

func sample(f protoreflect.FieldDescriptor, now protoreflect.Value, name string) protoreflect.Value {
	given := sampleOf(name)
	switch f.Kind() {
	case protoreflect.StringKind:
		if s, ok := given.(string); ok {
			return protoreflect.ValueOfString(s)
		}
		return protoreflect.ValueOfString("/sample")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("sample"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!now.Bool())
	case protoreflect.EnumKind:
		if n, ok := given.(int32); ok {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
		}
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(7)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(7)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(7)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(7)
	}
	panic("cri: fields_test has no sample for " + name + ", a " + f.Kind().String())
}

// names reports whether the error is about the field, or about one that holds it.
// Indexes do not count.
func names(text, field string) bool {
	text = strings.ReplaceAll(text, "[0]", "")
	for f := field; strings.Contains(f, "."); f = parent(f) {
		if strings.Contains(text, f+": ") || strings.Contains(text, f+"[") {
			return true
		}
	}
	return strings.HasPrefix(text, field+": ")
}

// lookup finds a path, or one that holds it, in a table; "" when it has neither.
func lookup(table map[string]string, path string) string {
	for p := path; p != ""; p = parent(p) {
		if _, ok := table[p]; ok {
			return p
		}
	}
	return ""
}

func parent(path string) string { return path[:max(0, strings.LastIndexByte(path, '.'))] }
