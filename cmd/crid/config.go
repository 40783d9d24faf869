package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/image"
)

// defaultConfigFile is read when --config is not given; it need not exist.
const defaultConfigFile = "/etc/crid/config.toml"

// Config is crid's configuration. Its comments, values of Default and limits in
// validate are all there is to know about each key: `crid config default`
// prints them, and docs/configuration.md is that output.
type Config struct {
	Root string `toml:"root" comment:"Folder of what survives a reboot: images, layers, writable layers, records.\nMust be on a local file system that overlayfs takes as upper layer (ext4, xfs)."`

	State string `toml:"state" comment:"Folder of what a reboot may lose: sockets, resolv.conf and so on of pods, the\nmonitor's state. Should be on a tmpfs. For user namespaces of pods, other users\nmust be able to pass through it and the folders above it (mode 0711)."`

	Socket string `toml:"socket" comment:"Unix socket on which CRI is served (mode 0660). At most 107 bytes."`

	NetNSDir string `toml:"netns_dir" comment:"Folder in which pods' network namespaces are pinned, as crid-<sandbox ID>.\n\"ip netns\" looks in /run/netns."`

	MonitorBinary string `toml:"monitor_binary" comment:"Program that runs containers. Empty: crid-monitor beside crid's own program, then in PATH."`

	CgroupDriver string `toml:"cgroup_driver" comment:"Who makes cgroups: \"cgroupfs\" (crid-monitor itself), \"systemd\", or \"auto\": systemd\nwhere systemd runs and cgroups are v2, else cgroupfs. kubelet asks and follows."`

	CgroupParent string `toml:"cgroup_parent" comment:"Cgroup of pods that come without one (kubelet's come with one). Empty: \"/crid\", with\nthe systemd driver \"crid.slice\"."`

	StrictMounts bool `toml:"strict_mounts" comment:"Refuse a volume whose path on the node is missing, as CRI asks. Otherwise a folder is\nmade there, as other runtimes do and as pods with a hostPath of no type rely on."`

	CDISpecDirs []string `toml:"cdi_spec_dirs" comment:"Folders of CDI spec files, in which vendors describe devices. A device in a later folder\nreplaces one of its name in an earlier. They are read when a container wants such a device.\nEmpty: there are none."`

	LogRateLimit int `toml:"log_rate_limit" comment:"Bytes a second that go into a container's log, at least 1024. What it writes above is\ndropped, not held up, and a line in the log says how much. 0: no limit. Holds for\ncontainers that are created from then on."`

	WritableLayerLimit int `toml:"writable_layer_limit" comment:"Bytes that each container may write into its own root file system, at least 16777216. More\nis \"Disk quota exceeded\" there (on xfs \"No space left on device\"). Needs project quota on the\nfile system of root (docs/state-on-disk.md); without it crid does not start. 0: no limit. Holds\nfor containers that are created from then on."`

	WritableLayerInodeLimit int `toml:"writable_layer_inode_limit" comment:"The same for files and folders, at least 1024. 0: no limit."`

	FirstProjectID int `toml:"first_project_id" comment:"First of the 1048576 project IDs by which writable layers are counted where the file\nsystem does that. Nobody else may use them on this file system; kubelet's own begin at\n1048577. 2097152 to 4293918719."`

	LogVerbosity int `toml:"log_verbosity" comment:"0: start, stop, lost data. 2: each change of state. 4: each external call with its\nduration. 6: payloads, without secrets. At most 10."`

	LogFormat string `toml:"log_format" comment:"\"text\" (klog's) or \"json\" (one object per line). Both go to stderr."`

	DrainTimeout duration `toml:"drain_timeout" comment:"How long crid waits at SIGTERM for requests under way. Containers run on in any case."`

	CNI       CNIConfig       `toml:"cni" comment:"The pods' network."`
	Registry  RegistryConfig  `toml:"registry" comment:"Where images come from."`
	Images    ImagesConfig    `toml:"images" comment:"Which images are accepted, and which are kept."`
	Streaming StreamingConfig `toml:"streaming" comment:"Where kubelet connects to for exec, attach and port-forward."`
	Metrics   MetricsConfig   `toml:"metrics" comment:"Figures about crid itself, for Prometheus (docs/metrics.md)."`
	Tracing   TracingConfig   `toml:"tracing" comment:"Traces of requests and their steps, for OpenTelemetry (docs/debugging.md)."`
}

// CNIConfig is the pods' network.
type CNIConfig struct {
	ConfDir string `toml:"conf_dir" comment:"Folder of CNI configurations. The first in the alphabet is used; it is watched.\nAt its start crid has the plugins forget all attachments that it does not know: a network\nthat another runtime of this node uses too needs \"disableGC\": true in its file."`

	BinDirs []string `toml:"bin_dirs" comment:"Folders of CNI plugins, searched in this order."`

	CacheDir string `toml:"cache_dir" comment:"Folder of results of CNI's ADD, which plugins get back. Empty: cni, below root."`

	Timeout duration `toml:"timeout" comment:"Limit of one call of one plugin; then its process group is killed."`
}

// RegistryConfig is where images come from.
type RegistryConfig struct {
	ConfigDirs []string `toml:"config_dirs" comment:"Folders of <registry>/hosts.toml files (mirrors, certificates), in containerd's\nformat. The first folder that has one for a registry is used."`

	MaxConcurrentDownloads int `toml:"max_concurrent_downloads" comment:"Layers of one pull that are fetched at the same time, and parts of large layers, of\n4 MiB each, that all pulls together fetch ahead over further connections. 1 to 64; 1\nfetches everything over one connection."`

	ProgressTimeout duration `toml:"progress_timeout" comment:"A pull that gets no byte for so long is given up."`
}

// ImagesConfig is which images are accepted, and which are kept.
type ImagesConfig struct {
	Pinned []string `toml:"pinned" comment:"Images that kubelet does not remove when the disk gets full: names with tag or digest, names\nwithout for all of them, image IDs, or full names with * for any text, such as\n\"registry.k8s.io/*\". They can still be removed by hand."`

	SignaturePolicy string `toml:"signature_policy" comment:"Policy file that says which signatures images must have, in the format of other\ncontainer tools (containers-policy.json(5)); see docs/signatures.md. It and the keys that it\nnames are read for every pull. Empty: every image is accepted."`

	SignatureVerifier string `toml:"signature_verifier" comment:"Program that verifies signatures. Empty: crid-verify beside crid's own program, then in PATH."`
}

// StreamingConfig is the server of exec, attach and port-forward.
type StreamingConfig struct {
	Address string `toml:"address" comment:"IP address to listen on. kubelet, on the same node, is the only client that connects to\nit. One that is not a loopback address needs TLS: whoever reads a URL on its way could\nuse it instead of kubelet."`

	Port int `toml:"port" comment:"0: any that is free. At most 65535."`

	TLSCertFile string `toml:"tls_cert_file" comment:"Certificate in PEM, and its key. Both are read again when the certificate's file changes.\nEmpty: no TLS."`
	TLSKeyFile  string `toml:"tls_key_file"`

	IdleTimeout duration `toml:"idle_timeout" comment:"A connection on which nothing moves for so long is closed. 1s to 168h."`
}

// MetricsConfig is where figures are served.
type MetricsConfig struct {
	Address string `toml:"address" comment:"IP address and port on which /metrics is served by HTTP, such as \"127.0.0.1:9097\". It\nmust be a loopback address: who is to read it from elsewhere needs a proxy that asks who\nthey are. Empty: only the socket admin.sock below state has it."`
}

// TracingConfig is where traces are sent.
type TracingConfig struct {
	Endpoint string `toml:"endpoint" comment:"Host and port of a collector that takes OTLP over gRPC without TLS, such as\n\"127.0.0.1:4317\". Empty: no traces."`

	SamplingRatePerMillion int `toml:"sampling_rate_per_million" comment:"How many of a million requests are traced that come without a trace. Those of a client\nthat traces them, as kubelet does with the key of this name, are traced in any case."`
}

// Default is the configuration without a file.
func Default() Config {
	return Config{
		Root:           "/var/lib/crid",
		State:          "/run/crid",
		Socket:         "/run/crid/crid.sock",
		NetNSDir:       "/run/netns",
		CgroupDriver:   driverAuto,
		CDISpecDirs:    []string{"/etc/cdi", "/var/run/cdi"},
		FirstProjectID: 1 << 30,
		LogVerbosity:   2,
		LogFormat:      logText,
		DrainTimeout:   duration{Duration: 10 * time.Second},
		CNI: CNIConfig{
			ConfDir: "/etc/cni/net.d",
			BinDirs: []string{"/opt/cni/bin"},
			Timeout: duration{Duration: time.Minute},
		},
		Registry: RegistryConfig{
			ConfigDirs:             []string{"/etc/crid/certs.d", "/etc/containerd/certs.d"},
			MaxConcurrentDownloads: 6,
			ProgressTimeout:        duration{Duration: time.Minute},
		},
		Images:    ImagesConfig{Pinned: []string{}},
		Streaming: StreamingConfig{Address: "127.0.0.1", IdleTimeout: duration{Duration: 4 * time.Hour}},
	}
}

const (
	driverAuto     = "auto"
	driverCgroupfs = "cgroupfs"
	driverSystemd  = "systemd"

	logText = "text"
	logJSON = "json"
)

// duration is a time.Duration written as "1m30s".
type duration struct {
	time.Duration
	wrong string // what was written instead; validate says so, with key and line
}

// UnmarshalText implements encoding.TextUnmarshaler. It never fails: the decoder
// would not say where.
func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = duration{Duration: v}
	if err != nil {
		d.wrong = string(text)
	}
	return nil
}

// MarshalText implements encoding.TextMarshaler.
func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String leaves out zero units at the end: 1m, not 1m0s.
func (d duration) String() string {
	s := d.Duration.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// documented is c as TOML with every key explained.
func (c Config) documented() ([]byte, error) {
	text, err := toml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("print configuration: %w", err)
	}
	var b bytes.Buffer
	b.WriteString("# Configuration of crid. Each key is optional; the values shown are the defaults.\n\n")
	afterKey := false
	for line := range strings.Lines(string(text)) {
		isComment := strings.HasPrefix(line, "#")
		if isComment && afterKey {
			b.WriteString("\n")
		}
		afterKey = !isComment && strings.Contains(line, "=")
		b.WriteString(line)
	}
	return b.Bytes(), nil
}

// loadConfig reads file over the defaults. With file "" the usual one is read,
// if there is one. Each error names the file, the line, the key and what is
// allowed.
func loadConfig(file string) (Config, error) {
	optional := file == ""
	if optional {
		file = defaultConfigFile
	}
	data, err := os.ReadFile(file)
	if optional && errors.Is(err, os.ErrNotExist) {
		data, err = nil, nil
	}
	if err != nil {
		return Config{}, usagef("configuration: %w", err)
	}
	return parseConfig(file, data)
}

func parseConfig(file string, data []byte) (Config, error) {
	c := Default()
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &unknown):
		first := &unknown.Errors[0]
		line, _ := first.Position()
		return Config{}, usagef("%s:%d: unknown key %q; `crid config default` prints all keys", file, line, strings.Join(first.Key(), "."))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		if key := strings.Join(wrong.Key(), "."); key != "" {
			return Config{}, usagef("%s:%d: %s %s", file, line, key, wrongType(wrong))
		}
		return Config{}, usagef("%s:%d: %s", file, line, strings.TrimPrefix(wrong.Error(), "toml: "))
	case err != nil:
		return Config{}, usagef("%s: %w", file, err)
	}
	if bad := c.validate(); bad != nil {
		return Config{}, usagef("%s:%d: %s %s", file, lineOf(data, bad.key), bad.key, bad.why)
	}
	c.fill()
	return c, nil
}

// wrongType says what a value must be, without the decoder's words for Go's types.
func wrongType(err *toml.DecodeError) string {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	for suffix, want := range map[string]string{
		" of type int": "a whole number", " of type string": "text in quotes", " of type bool": "true or false",
		" of type []string": "a list of texts", " of type main.CNIConfig": "a section", " of type main.RegistryConfig": "a section",
		" of type main.StreamingConfig": "a section", " of type main.ImagesConfig": "a section", " of type main.MetricsConfig": "a section",
		" of type main.TracingConfig": "a section",
	} {
		if strings.HasSuffix(text, suffix) {
			return "must be " + want
		}
	}
	return "is wrong: " + text
}

// fill sets what is derived from other keys.
func (c *Config) fill() {
	if c.CNI.CacheDir == "" {
		c.CNI.CacheDir = filepath.Join(c.Root, "cni")
	}
}

// badKey is a key whose value is not allowed.
type badKey struct{ key, why string }

// validate finds the first key whose value is not allowed.
func (c *Config) validate() *badKey {
	for _, p := range []struct {
		key, value string
		optional   bool
	}{
		{"root", c.Root, false},
		{"state", c.State, false},
		{"socket", c.Socket, false},
		{"netns_dir", c.NetNSDir, false},
		{"monitor_binary", c.MonitorBinary, true},
		{"cni.conf_dir", c.CNI.ConfDir, false},
		{"cni.cache_dir", c.CNI.CacheDir, true},
		{"images.signature_policy", c.Images.SignaturePolicy, true},
		{"images.signature_verifier", c.Images.SignatureVerifier, true},
		{"streaming.tls_cert_file", c.Streaming.TLSCertFile, true},
		{"streaming.tls_key_file", c.Streaming.TLSKeyFile, true},
	} {
		if !filepath.IsAbs(p.value) && !(p.optional && p.value == "") {
			return &badKey{p.key, fmt.Sprintf("is %q, must be an absolute path", p.value)}
		}
	}
	if filepath.Clean(c.State) == filepath.Clean(c.Root) {
		return &badKey{"state", fmt.Sprintf("is %q, must be another folder than root", c.State)}
	}
	for key, list := range map[string][]string{"cdi_spec_dirs": c.CDISpecDirs, "cni.bin_dirs": c.CNI.BinDirs, "registry.config_dirs": c.Registry.ConfigDirs} {
		for _, dir := range list {
			if !filepath.IsAbs(dir) {
				return &badKey{key, fmt.Sprintf("has %q, must be a list of absolute paths", dir)}
			}
		}
	}
	for _, p := range c.Images.Pinned {
		if _, err := image.ParsePattern(p); err != nil {
			return &badKey{"images.pinned", fmt.Sprintf("has a %v", err)}
		}
	}
	switch {
	case len(c.Socket) > 107:
		return &badKey{"socket", fmt.Sprintf("has %d bytes, a unix socket's path at most 107", len(c.Socket))}
	case len(c.CNI.BinDirs) == 0:
		return &badKey{"cni.bin_dirs", "is empty, must name at least one folder"}
	case c.CgroupDriver != driverAuto && c.CgroupDriver != driverCgroupfs && c.CgroupDriver != driverSystemd:
		return &badKey{"cgroup_driver", fmt.Sprintf("is %q, must be %q, %q or %q", c.CgroupDriver, driverAuto, driverCgroupfs, driverSystemd)}
	case c.CgroupDriver == driverSystemd && c.CgroupParent != "" && !strings.HasSuffix(c.CgroupParent, ".slice"):
		return &badKey{"cgroup_parent", fmt.Sprintf("is %q, with the systemd driver it must end in .slice", c.CgroupParent)}
	case c.CgroupDriver == driverCgroupfs && c.CgroupParent != "" && !filepath.IsAbs(c.CgroupParent):
		return &badKey{"cgroup_parent", fmt.Sprintf("is %q, with the cgroupfs driver it must begin with /", c.CgroupParent)}
	case c.LogRateLimit != 0 && c.LogRateLimit < 1024:
		return &badKey{"log_rate_limit", fmt.Sprintf("is %d, must be 0 or at least 1024 bytes a second", c.LogRateLimit)}
	case c.WritableLayerLimit != 0 && c.WritableLayerLimit < 16<<20:
		return &badKey{"writable_layer_limit", fmt.Sprintf("is %d, must be 0 or at least 16777216 bytes: mount points of volumes are made in it", c.WritableLayerLimit)}
	case c.WritableLayerInodeLimit != 0 && c.WritableLayerInodeLimit < 1024:
		return &badKey{"writable_layer_inode_limit", fmt.Sprintf("is %d, must be 0 or at least 1024", c.WritableLayerInodeLimit)}
	case c.FirstProjectID < 2<<20 || c.FirstProjectID > 1<<32-1-1<<20:
		return &badKey{"first_project_id", fmt.Sprintf("is %d, must be between 2097152 and 4293918719", c.FirstProjectID)}
	case c.LogVerbosity < 0 || c.LogVerbosity > 10:
		return &badKey{"log_verbosity", fmt.Sprintf("is %d, must be between 0 and 10", c.LogVerbosity)}
	case c.LogFormat != logText && c.LogFormat != logJSON:
		return &badKey{"log_format", fmt.Sprintf("is %q, must be %q or %q", c.LogFormat, logText, logJSON)}
	case c.Registry.MaxConcurrentDownloads < 1 || c.Registry.MaxConcurrentDownloads > 64:
		return &badKey{"registry.max_concurrent_downloads", fmt.Sprintf("is %d, must be between 1 and 64", c.Registry.MaxConcurrentDownloads)}
	}
	if bad := cmp.Or(c.Streaming.validate(), c.Metrics.validate(), c.Tracing.validate()); bad != nil {
		return bad
	}
	const week = 7 * 24 * time.Hour
	for _, d := range []struct {
		key   string
		value duration
		most  time.Duration
		name  string // of most
	}{
		{"drain_timeout", c.DrainTimeout, time.Hour, "1h"},
		{"cni.timeout", c.CNI.Timeout, time.Hour, "1h"},
		{"registry.progress_timeout", c.Registry.ProgressTimeout, time.Hour, "1h"},
		{"streaming.idle_timeout", c.Streaming.IdleTimeout, week, "168h"},
	} {
		if d.value.wrong != "" {
			return &badKey{d.key, fmt.Sprintf("is %q, must be a duration such as \"90s\" or \"1m30s\"", d.value.wrong)}
		}
		if d.value.Duration < time.Second || d.value.Duration > d.most {
			return &badKey{d.key, fmt.Sprintf("is %s, must be between 1s and %s", d.value, d.name)}
		}
	}
	return nil
}

func (c *StreamingConfig) validate() *badKey {
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		return &badKey{"streaming.tls_key_file", "and streaming.tls_cert_file belong together: set both or none"}
	}
	if why := stream.CheckAddress(c.Address, c.TLSCertFile != ""); why != "" {
		return &badKey{"streaming.address", why}
	}
	if c.Port < 0 || c.Port > 65535 {
		return &badKey{"streaming.port", fmt.Sprintf("is %d, must be between 0 and 65535", c.Port)}
	}
	return nil
}

func (c *MetricsConfig) validate() *badKey {
	at, err := netip.ParseAddrPort(c.Address)
	switch {
	case c.Address == "":
	case err != nil:
		return &badKey{"metrics.address", fmt.Sprintf("is %q, must be an IP address and a port, such as \"127.0.0.1:9097\"", c.Address)}
	case !at.Addr().IsLoopback():
		return &badKey{"metrics.address", fmt.Sprintf("is %q, which others can reach without saying who they are: listen on 127.0.0.1, behind a proxy if need be", c.Address)}
	}
	return nil
}

func (c *TracingConfig) validate() *badKey {
	if host, port, err := net.SplitHostPort(c.Endpoint); c.Endpoint != "" && (err != nil || host == "" || port == "") {
		return &badKey{"tracing.endpoint", fmt.Sprintf("is %q, must be a host and a port, such as \"127.0.0.1:4317\"", c.Endpoint)}
	}
	if c.SamplingRatePerMillion < 0 || c.SamplingRatePerMillion > 1_000_000 {
		return &badKey{"tracing.sampling_rate_per_million", fmt.Sprintf("is %d, must be between 0 and 1000000", c.SamplingRatePerMillion)}
	}
	return nil
}

// lineOf is the line of a key in TOML; 1 when it cannot be found (a key within
// an inline table).
func lineOf(data []byte, key string) int {
	section, n := "", 0
	for line := range strings.Lines(string(data)) {
		n++
		line = strings.TrimSpace(line)
		if name, ok := strings.CutPrefix(line, "["); ok {
			name, _, _ = strings.Cut(name, "]")
			section = strings.TrimSpace(name) + "."
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if ok && section+strings.TrimSpace(name) == key {
			return n
		}
	}
	return 1
}
