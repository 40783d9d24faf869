package cri

import (
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cridproject/crid/sandbox/config"
)

// maxHostname is the kernel's limit (__NEW_UTS_LEN).
const maxHostname = 64

var protocols = map[v1.Protocol]string{
	v1.Protocol_TCP:  "tcp",
	v1.Protocol_UDP:  "udp",
	v1.Protocol_SCTP: "sctp",
}

// sandbox decodes a RunPodSandboxRequest.
func (d *decoder) sandbox(r *v1.RunPodSandboxRequest) (config.Sandbox, error) {
	if r.GetRuntimeHandler() != "" {
		d.reject("runtime_handler", "there is no handler %q, only the default one, \"\"", r.GetRuntimeHandler())
	}
	c := r.GetConfig()
	if c == nil {
		d.reject("config", "must be set")
		return config.Sandbox{}, d.err()
	}
	w := config.Sandbox{
		Hostname:       c.GetHostname(),
		LogDirectory:   d.logDirectory(c.GetLogDirectory()),
		DNS:            d.dns(c.GetDnsConfig()),
		PortMappings:   d.ports(c.GetPortMappings()),
		Labels:         c.GetLabels(),
		Annotations:    c.GetAnnotations(),
		RuntimeHandler: r.GetRuntimeHandler(),
	}
	if m := c.GetMetadata(); m == nil {
		d.reject("config.metadata", "must be set")
	} else {
		w.Name, w.UID, w.Namespace, w.Attempt = m.GetName(), m.GetUid(), m.GetNamespace(), m.GetAttempt()
		d.check("config.metadata.name", badName(w.Name))
		d.check("config.metadata.uid", badName(w.UID))
		d.check("config.metadata.namespace", badName(w.Namespace))
	}
	if w.Hostname != "" {
		d.check("config.hostname", badToken(w.Hostname))
		if len(w.Hostname) > maxHostname {
			d.reject("config.hostname", "is %d bytes long, the kernel takes at most %d", len(w.Hostname), maxHostname)
		}
	}
	d.sandboxLinux(c.GetLinux(), &w)
	return w, d.err()
}

// sandboxLinux also runs for a nil message: its defaults are the API's.
func (d *decoder) sandboxLinux(l *v1.LinuxPodSandboxConfig, w *config.Sandbox) {
	sc := l.GetSecurityContext()
	w.CgroupParent = d.cgroupParent(l.GetCgroupParent())
	w.Namespaces = d.namespaces("config.linux.security_context.namespace_options", sc.GetNamespaceOptions())
	w.Privileged = sc.GetPrivileged()
	w.ReadonlyRootfs = sc.GetReadonlyRootfs()
	w.Sysctls = d.sysctls(l.GetSysctls())
	if r := l.GetOverhead(); r != nil {
		res := d.resources("config.linux.overhead", r)
		w.Overhead = &res
	}
	if r := l.GetResources(); r != nil {
		res := d.resources("config.linux.resources", r)
		w.Resources = &res
	}
	if w.Namespaces.PID == config.NamespaceTarget {
		d.reject("config.linux.security_context.namespace_options.pid", "TARGET is for containers")
	}
	d.sandboxSecurity(sc)
}

func (d *decoder) logDirectory(dir string) config.HostPath {
	if dir == "" {
		return ""
	}
	d.check("config.log_directory", badPath(dir))
	d.check("config.log_directory", badText(dir))
	return config.HostPath(path.Clean(dir))
}

func (d *decoder) dns(c *v1.DNSConfig) *config.DNS {
	if c == nil {
		return nil
	}
	for _, list := range []struct {
		field string
		items []string
	}{{"servers", c.GetServers()}, {"searches", c.GetSearches()}, {"options", c.GetOptions()}} {
		for i, item := range list.items {
			d.check(at("config.dns_config."+list.field, i), badToken(item))
		}
	}
	return &config.DNS{Servers: c.GetServers(), Searches: c.GetSearches(), Options: c.GetOptions()}
}

func (d *decoder) ports(in []*v1.PortMapping) []config.PortMapping {
	var out []config.PortMapping
	for i, p := range in {
		at := at("config.port_mappings", i)
		if p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
			d.reject(at+".container_port", "is %d, must be from 1 to 65535", p.GetContainerPort())
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
			d.reject(at+".host_port", "is %d, must be from 0 to 65535", p.GetHostPort())
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				d.reject(at+".host_ip", "%q is no IP address", ip)
			}
		}
		out = append(out, config.PortMapping{
			Protocol:      enum(d, at+".protocol", p.GetProtocol(), protocols),
			ContainerPort: uint16(p.GetContainerPort()),
			HostPort:      uint16(p.GetHostPort()),
			HostIP:        p.GetHostIp(),
		})
	}
	return out
}

// cgroupParent checks a parent against the cgroup driver: a mismatch with
// kubelet's would put every pod of the node in the wrong place.
func (d *decoder) cgroupParent(parent string) string {
	const field = "config.linux.cgroup_parent"
	switch {
	case parent == "":
	case d.systemd && !strings.HasSuffix(path.Base(parent), ".slice"):
		d.reject(field, "%q must end in .slice, as the cgroup driver is systemd; is kubelet's cgroupfs?", parent)
	case !d.systemd && !path.IsAbs(parent):
		d.reject(field, "%q must be an absolute path, as the cgroup driver is cgroupfs; is kubelet's systemd?", parent)
	case slices.Contains(strings.Split(parent, "/"), ".."):
		d.reject(field, "%q must not contain \"..\"", parent)
	default:
		d.check(field, badToken(parent))
	}
	return parent
}

// sysctlName has no empty elements, so that no name leads out of /proc/sys.
var sysctlName = regexp.MustCompile(`^[a-z0-9_]+([./][a-zA-Z0-9_*-]+)+$`)

// sysctls checks the names' form. Which of them are the pod's to change is for
// the manager to say.
func (d *decoder) sysctls(in map[string]string) map[string]string {
	for _, name := range slices.Sorted(maps.Keys(in)) {
		field := "config.linux.sysctls[" + strconv.Quote(name) + "]"
		if !sysctlName.MatchString(name) {
			d.reject(field, "is no name of a sysctl")
		}
		d.check(field, badText(in[name]))
	}
	return in
}

// at is the path of an element of a repeated field.
func at(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
