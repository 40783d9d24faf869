package repotest

import (
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rule says what the packages of a folder may import beside the standard library.
// An entry that ends in "/..." covers all below as well.
type rule struct {
	own   []string // folders of this module
	other []string // other modules' packages, by their beginning
}

// Rules of more than one folder.
const (
	klog  = "k8s.io/klog/v2"
	unix  = "golang.org/x/sys/unix"
	specs = "github.com/opencontainers/runtime-spec"
	leafs = "internal/..."
)

// rules is the direction of imports: cmd → cri → sandbox → {cni, image, monitor}
// → internal. The most specific folder counts. A folder without a rule needs one:
// that is the moment to ask where in the picture it stands.
var rules = map[string]rule{
	"cmd/crid": {
		own: []string{"cri/...", "sandbox/...", "cni", "image", "image/signature", "monitor", leafs},
		other: []string{
			"google.golang.org/grpc", klog, "github.com/pelletier/go-toml/v2", "github.com/go-logr/logr",
			"k8s.io/cri-api", "github.com/docker/go-units", "golang.org/x/term", // `crid status` and `crid image` are clients
		},
	},
	"cmd/crid-monitor": {
		own: []string{"monitor", "monitor/server", leafs}, other: []string{klog, "github.com/opencontainers/runc/libcontainer"},
	},
	// Its tests pull with a store; TestProgramsDoNotLink keeps that out of the program.
	"cmd/crid-verify": {own: []string{"image", "image/signature", "image/signature/sigstore", "internal/errkind"}},
	"cri": {
		own:   []string{"cri/stream", "sandbox", "sandbox/config", "image", "internal/errkind"},
		other: []string{"k8s.io/cri-api", "google.golang.org/grpc", "google.golang.org/protobuf", klog, "tags.cncf.io/container-device-interface/pkg/parser"},
	},
	"cri/stream": {
		own:   []string{"sandbox", leafs},
		other: []string{"k8s.io/cri-streaming", "k8s.io/streaming", "golang.org/x/net/websocket", klog},
	},
	"sandbox": {
		own:   []string{"sandbox/config", "sandbox/spec/...", "cni", "image", "monitor", leafs},
		other: []string{specs, "github.com/opencontainers/cgroups", klog},
	},
	"sandbox/config": {},
	"sandbox/spec": {
		own: []string{"sandbox/config", "sandbox/spec", "internal/errkind"},
		other: []string{
			specs, "github.com/opencontainers/image-spec", "github.com/moby/profiles",
			"github.com/moby/sys/user", "github.com/moby/sys/signal",
		},
	},
	// What Build needs to know of the node: reads /proc and /sys, so it is not in spec.
	"sandbox/spec/host": {
		own: []string{"sandbox/config", "sandbox/spec", leafs}, other: []string{specs, "github.com/moby/sys", "github.com/moby/profiles/apparmor", klog},
	},
	// What vendors' files say of their devices.
	"sandbox/spec/cdi": {
		own: []string{"internal/errkind"}, other: []string{specs, klog, "tags.cncf.io/container-device-interface"},
	},
	"cni": {
		own: []string{leafs}, other: []string{"github.com/containernetworking/cni", "github.com/fsnotify/fsnotify", klog},
	},
	"image": {
		own: []string{"image/...", leafs},
		other: []string{
			"github.com/opencontainers/image-spec", "github.com/opencontainers/go-digest", "github.com/distribution/reference",
			"github.com/containerd", "github.com/klauspost/compress", "github.com/pelletier/go-toml/v2", "golang.org/x/sync", klog,
			"golang.org/x/net/http/httpproxy", // the standard library's reads the environment only once
			"github.com/sirupsen/logrus",      // containerd's log, listened to
		},
	},
	// Files below a folder that cannot be left, by *at calls; nothing else of image
	// touches a file of a layer.
	"image/dirfd": {other: []string{unix}},
	// What a policy file says; signatures are verified in another program.
	"image/signature": {
		own: []string{"internal/errkind"}, other: []string{"github.com/distribution/reference", "github.com/opencontainers/go-digest"},
	},
	"image/signature/sigstore": {own: []string{"image/signature"}, other: []string{"github.com/sigstore"}},
	"monitor":                  {own: []string{leafs}, other: []string{specs, klog}},
	"monitor/server": {
		own: []string{"monitor", "monitor/server/filter", leafs},
		other: []string{
			"github.com/opencontainers/runc/libcontainer", "github.com/opencontainers/cgroups", specs, unix, klog,
			"github.com/sirupsen/logrus", // libcontainer's log, turned into ours
			"github.com/containerd/console", "github.com/moby/sys",
		},
	},
	"monitor/server/filter":        {other: []string{unix, klog}},
	"internal":                     {own: []string{"internal/errkind"}},
	"internal/metrics":             {own: []string{"internal/errkind"}, other: []string{"github.com/prometheus/client_golang"}},
	"internal/trace":               {other: []string{"go.opentelemetry.io/otel"}},
	"internal/trace/otlp/otlptest": {other: []string{"go.opentelemetry.io/proto/otlp", "google.golang.org/grpc"}},
	"internal/trace/otlp":          {own: []string{"internal/trace"}, other: []string{"go.opentelemetry.io/otel", klog}},
	"internal/cgstat":              {own: []string{"internal/sys"}},
	"internal/sys":                 {own: []string{"internal/errkind"}, other: []string{unix}},
	"internal/testutil":            {own: []string{"internal/sys", "internal/errkind"}},
	"test":                         {own: []string{leafs, "test/e2e"}, other: []string{"k8s.io/cri-api", "google.golang.org/grpc", "github.com/google/go-containerregistry", "k8s.io/client-go", "k8s.io/streaming"}},
	// Programs of the build: they make images, or are clients of crid.
	"hack": {own: []string{leafs}, other: []string{"k8s.io/cri-api", "google.golang.org/grpc", "github.com/google/go-containerregistry"}},
}

// ruleFor is a folder's own rule, or that of the nearest above that has one. A package xtest
// beside x holds its fakes: it may import what x may, the fakes of that, and x.
func ruleFor(folder string) (r rule, found bool) {
	if r, ok := rules[folder]; ok {
		return r, true
	}
	if base := path.Base(folder); strings.HasSuffix(base, "test") && base == path.Base(path.Dir(folder))+"test" {
		parent := path.Dir(folder)
		r, found = ruleFor(parent)
		own := slices.Concat(r.own, []string{parent + "/..."})
		for _, dir := range r.own {
			own = append(own, dir+"/"+path.Base(dir)+"test")
		}
		r.own = own
		return r, found
	}
	for dir := folder; dir != "."; dir = path.Dir(dir) {
		if r, ok := rules[dir]; ok {
			return r, true
		}
	}
	return rule{}, false
}

func covers(entries []string, name string) bool {
	return slices.ContainsFunc(entries, func(e string) bool {
		dir, all := strings.CutSuffix(e, "/...")
		return name == dir || all && strings.HasPrefix(name, dir+"/")
	})
}

func TestImportDirection(t *testing.T) {
	for _, p := range goList(t, "./...") {
		folder, _ := p.folder()
		r, ok := ruleFor(folder)
		if !ok {
			t.Errorf("%s: no rule says what it may import: add one to rules in internal/repotest", folder)
			continue
		}
		for _, imp := range p.Imports {
			if !r.allows(imp) {
				t.Errorf("%s imports %s, which its rule in internal/repotest does not allow", folder, imp)
			}
		}
		// Tests may use any module, and the fakes and helpers of this one.
		r.own = slices.Concat(r.own, []string{folder + "/...", "internal/testutil"})
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if f, own := folderOf(imp); own && !covers(r.own, f) && !strings.HasSuffix(f, "test") {
				t.Errorf("a test of %s imports %s, which its rule in internal/repotest does not allow", folder, f)
			}
		}
	}
}

func (r rule) allows(imp string) bool {
	if f, own := folderOf(imp); own {
		return covers(r.own, f)
	}
	first, _, _ := strings.Cut(imp, "/")
	return !strings.Contains(first, ".") || // the standard library
		slices.ContainsFunc(r.other, func(m string) bool { return imp == m || strings.HasPrefix(imp, m+"/") })
}

func TestRuleFor(t *testing.T) {
	tests := []struct {
		folder, imp string
		want        bool
	}{
		{"cri", module + "/sandbox", true},
		{"cri/stream", module + "/sandbox", true},
		{"cri/stream", module + "/image", false},
		{"cri", module + "/monitor", false},
		{"cri", module + "/internal/sys", false},
		{"sandbox", module + "/cri", false},
		{"sandbox/config", "strings", true},
		{"sandbox/config", module + "/internal/errkind", false},
		{"sandbox/sandboxtest", module + "/sandbox", true},
		{"sandbox/sandboxtest", module + "/cri", false},
		{"sandbox/sandboxtest", module + "/monitor/monitortest", true},
		{"sandbox", module + "/monitor/monitortest", false},
		{"monitor", "github.com/opencontainers/runc/libcontainer", false},
		{"monitor/server", "github.com/opencontainers/runc/libcontainer/configs", true},
		{"internal/keylock", unix, false},
		{"internal/sys", unix, true},
		{"internal/sys", "golang.org/x/sys/unixx", false},
	}
	for _, tt := range tests {
		r, ok := ruleFor(tt.folder)
		if !ok || r.allows(tt.imp) != tt.want {
			t.Errorf("%s may import %s: %v, want %v", tt.folder, tt.imp, !tt.want, tt.want)
		}
	}
	if _, ok := ruleFor("utils"); ok {
		t.Error("a new folder has a rule, want none")
	}
}

// dangers have one place each, so that whoever upgrades or audits them reads one file.
var dangers = []struct {
	imp   string   // and what is below
	files []string // that may import it
}{
	// seccomp.go has libcontainer compile filters, and touches no container.
	{"github.com/opencontainers/runc/libcontainer", []string{
		"monitor/server/runtime.go", "monitor/server/convert.go", "monitor/server/seccomp.go", "cmd/crid-monitor/main.go",
	}},
	// errors.go chooses codes; the interceptor reads them to choose a log level, the
	// client to print the text.
	{"google.golang.org/grpc/status", []string{"cri/errors.go", "cmd/crid/client.go"}},
	{"google.golang.org/grpc/codes", []string{"cri/errors.go", "cri/interceptor.go"}},
	{"github.com/containerd/containerd/v2/core/remotes", []string{"image/registry.go"}},
	{"github.com/sigstore", []string{"image/signature/sigstore/verify.go"}},
}

func TestOnePlacePerDanger(t *testing.T) {
	walk(t, func(file string) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(file, "test/") || strings.HasPrefix(file, "hack/") {
			return
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, spec := range f.Imports {
			imp, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range dangers {
				if (imp == d.imp || strings.HasPrefix(imp, d.imp+"/")) && !slices.Contains(d.files, file) {
					t.Errorf("%s imports %s: only %s may", file, imp, strings.Join(d.files, " and "))
				}
			}
		}
	}, ".go")
}
