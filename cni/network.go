// Package cni attaches network namespaces to a network by running CNI plugins.
//
// It knows nothing of CRI or containers: the path of a namespace goes in,
// addresses come out. Which network is used is decided by the files of one
// folder, which is watched (conf.go, watch.go).
//
// An Attachment carries the configuration that it was planned with, so that it
// can be undone with the same one whatever happens to the folder afterwards.
// The caller persists the Attachment that Plan returns before it calls Attach;
// from then on Detach undoes it, whether Attach was called, failed, was killed
// halfway or succeeded.
//
// Methods may be called concurrently. Calls for one Attachment ID are done one
// after the other, because plugins are not required to cope with less; calls
// for different IDs do not wait for each other.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/keylock"
	"github.com/cridproject/crid/internal/trace"
	"k8s.io/klog/v2"
)

// DefaultIfName is the name of a pod's interface where nothing else is asked for.
const DefaultIfName = "eth0"

// Options of a Network.
type Options struct {
	ConfDir  string        // folder of the network configurations; need not exist yet
	BinDirs  []string      // folders of the plugin programs, searched in this order
	CacheDir string        // libcni's folder for results of ADD; must belong to this Network alone
	Timeout  time.Duration // limit for one call of one plugin; 0 means two minutes
	// OnCall is told of each call of a plugin, err being nil for success. It must not
	// wait. nil means nobody is.
	OnCall func(plugin, verb string, took time.Duration, err error)
}

// Network is the network that the configuration folder names, and all those
// that are still in use by attachments planned earlier.
type Network struct {
	confDir string
	libcni  *libcni.CNIConfig
	exec    *runner

	ids     keylock.Map[string] // by Attachment.ID; held across plugin calls
	orphans orphans
	state   atomic.Pointer[State]
	refresh chan struct{} // asks Watch for a fresh verdict; holds one
}

// New returns a Network that has read ConfDir once. A missing or broken
// configuration is no error here: Status says so.
func New(o Options) (*Network, error) {
	switch {
	case !filepath.IsAbs(o.ConfDir):
		return nil, errkind.Errorf(errkind.Invalid, "CNI configuration folder %q: must be an absolute path", o.ConfDir)
	case !filepath.IsAbs(o.CacheDir):
		return nil, errkind.Errorf(errkind.Invalid, "CNI cache folder %q: must be an absolute path", o.CacheDir)
	case len(o.BinDirs) == 0:
		return nil, errkind.Errorf(errkind.Invalid, "no folder of CNI plugins is given")
	case o.Timeout < 0:
		return nil, errkind.Errorf(errkind.Invalid, "time limit of CNI plugins is %v: must not be negative", o.Timeout)
	}
	for _, dir := range o.BinDirs {
		// CNI_PATH separates them by colons.
		if !filepath.IsAbs(dir) || strings.ContainsRune(dir, os.PathListSeparator) {
			return nil, errkind.Errorf(errkind.Invalid, "CNI plugin folder %q: must be an absolute path without a colon", dir)
		}
	}
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.OnCall == nil {
		o.OnCall = func(string, string, time.Duration, error) {}
	}
	run := &runner{onCall: o.OnCall, limit: o.Timeout, binDirs: o.BinDirs, mark: markOf(o.CacheDir)}
	n := &Network{
		confDir: filepath.Clean(o.ConfDir),
		exec:    run,
		libcni:  libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.CacheDir, run),
		refresh: make(chan struct{}, 1),
	}
	n.orphans.pids = findOrphans(run.mark)
	n.load()
	return n, nil
}

// Attachment is one network namespace's place on the network. It is plain data,
// to be persisted as it stands.
type Attachment struct {
	ID     string // of the sandbox; CNI_CONTAINERID
	NetNS  string // path of the namespace
	IfName string // of the interface made in it; "" means DefaultIfName

	// Who it is for, told to the plugins as K8S_POD_NAME and so on.
	Name, Namespace, UID string

	Ports       []Port
	IngressBits uint64 // limit of what comes in, in bits per second; 0 means none
	EgressBits  uint64 // limit of what goes out, in bits per second; 0 means none
	CgroupPath  string // for plugins with the capability cgroupPath; "" means not told
	Annotations map[string]string
	DNS         *DNS // for plugins with the capability dns; nil means not told

	Config []byte // the network's configuration, complete; set by Plan
}

// Port maps a port of the node to one of the namespace.
type Port struct {
	Protocol  string // tcp, udp or sctp, in any case
	Container uint16
	Host      uint16 // 0 means that it is not mapped: the entry is ignored
	HostIP    string // "" means all addresses of the node
}

// DNS is what goes into the pod's resolv.conf, for plugins that want to know.
type DNS struct {
	Servers, Searches, Options []string
}

// Result is what became of an attachment.
type Result struct {
	IPs []netip.Addr // of the interface IfName, in the plugins' order; the first is the pod's address; never empty
	Raw []byte       // the last plugin's result, JSON of the CNI specification
}

// Plan picks the network for a and returns a with that network's configuration
// in it. Persist what it returns, then Attach. Plan runs no plugin.
//
// An error of kind Unavailable says that there is no network, Invalid that a
// cannot be told to plugins.
func (n *Network) Plan(a Attachment) (Attachment, error) {
	if a.IfName == "" {
		a.IfName = DefaultIfName
	}
	if err := a.check(); err != nil {
		return Attachment{}, err
	}
	s := n.state.Load()
	if s.list == nil {
		return Attachment{}, s.Err
	}
	// Here, because nothing needs to be undone yet: once Attach may have been
	// called, Detach needs the plugins as well.
	for _, p := range s.list.Plugins {
		if _, err := n.exec.FindInPath(p.Network.Type, n.exec.binDirs); err != nil {
			return Attachment{}, fmt.Errorf("network %s: %w", s.list.Name, err)
		}
	}
	a.Config = s.list.Bytes
	return a, nil
}

// check refuses what plugins or CNI_ARGS cannot carry.
func (a *Attachment) check() error {
	if err := utils.ValidateContainerID(a.ID); err != nil {
		return errkind.Errorf(errkind.Invalid, "CNI container ID %q: %w", a.ID, err)
	}
	if err := utils.ValidateInterfaceName(a.IfName); err != nil {
		return errkind.Errorf(errkind.Invalid, "interface name %q: %w", a.IfName, err)
	}
	for _, s := range []string{a.Name, a.Namespace, a.UID} {
		// CNI_ARGS is key=value;key=value without any escape.
		if strings.ContainsAny(s, ";=\n\x00") {
			return errkind.Errorf(errkind.Invalid, "pod name, namespace or UID %q: ';', '=' and control characters cannot be told to CNI plugins", s)
		}
	}
	for _, p := range a.Ports {
		if p.HostIP == "" {
			continue
		}
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			return errkind.Errorf(errkind.Invalid, "host IP %q of host port %d: not an IP address", p.HostIP, p.Host)
		}
	}
	return nil
}

// Attach runs the plugins' ADD for an attachment that Plan returned.
//
// It is not idempotent: after an error, or when it is not known whether it was
// called, Detach comes before the next Attach. The error has kind Unavailable
// or Timeout and names the plugin that failed.
func (n *Network) Attach(ctx context.Context, a Attachment) (_ Result, err error) {
	began := time.Now()
	ctx, end := trace.Start(ctx, "cni.attach")
	defer func() { end(err) }()
	list, rt, err := n.call(ctx, a)
	if err != nil {
		return Result{}, err
	}
	unlock, err := n.lock(ctx, a.ID)
	if err != nil {
		return Result{}, err
	}
	defer unlock()
	raw, err := n.libcni.AddNetworkList(ctx, list, rt)
	if err != nil {
		return Result{}, fmt.Errorf("attach sandbox %s to network %s: %w", a.ID, list.Name, plain(err))
	}
	r, err := newResult(raw, rt.IfName)
	if err != nil {
		return Result{}, fmt.Errorf("attach sandbox %s to network %s: %w", a.ID, list.Name, err)
	}
	klog.FromContext(ctx).V(2).Info("Attached network namespace", "sandbox", a.ID, "network", list.Name, "ips", r.IPs, "duration", time.Since(began))
	return r, nil
}

// Detach undoes whatever of Attach has been done, by the plugins' DEL with the
// configuration in a. What was never attached, or is detached already, is no
// error; the namespace, the configuration folder and libcni's cache may be gone.
//
// After an error Detach may be called again.
func (n *Network) Detach(ctx context.Context, a Attachment) (err error) {
	began := time.Now()
	if len(a.Config) == 0 {
		return nil // never planned, so never attached
	}
	ctx, end := trace.Start(ctx, "cni.detach")
	defer func() { end(err) }()
	list, rt, err := n.call(ctx, a)
	if err != nil {
		return err
	}
	unlock, err := n.lock(ctx, a.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if !isNamespace(rt.NetNS) {
		// The specification's word for "it is gone": plugins release what lies outside of it.
		rt.NetNS = ""
	}
	if err := n.libcni.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("detach sandbox %s from network %s: %w", a.ID, list.Name, plain(err))
	}
	klog.FromContext(ctx).V(2).Info("Detached network namespace", "sandbox", a.ID, "network", list.Name, "duration", time.Since(began))
	return nil
}

// GC has the plugins release what belongs to none of live: libcni's remembered
// attachments are detached, and plugins of specification 1.1 are asked to GC,
// on the present network and on every network that live still uses.
//
// Preconditions: no Attach is under way, and none begins before GC returns,
// whose attachment is not in live. In crid: at start, before the socket opens.
func (n *Network) GC(ctx context.Context, live []Attachment) error {
	for _, id := range n.orphans.all() {
		unlock, err := n.lock(ctx, id)
		if err != nil {
			return err
		}
		unlock()
	}
	lists := map[string]*libcni.NetworkConfigList{}
	valid := map[string][]types.GCAttachment{}
	if s := n.state.Load(); s.list != nil {
		lists[s.list.Name] = s.list
	}
	for _, a := range live {
		if len(a.Config) == 0 {
			continue
		}
		list, err := parseList(a.Config)
		if err != nil {
			// Without its name, nothing could be collected safely.
			return fmt.Errorf("collect what is left of old CNI attachments: configuration kept for sandbox %s: %w", a.ID, err)
		}
		if lists[list.Name] == nil {
			lists[list.Name] = list
		}
		valid[list.Name] = append(valid[list.Name], types.GCAttachment{ContainerID: a.ID, IfName: ifName(a)})
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(lists)) {
		keep := valid[name]
		if keep == nil {
			keep = []types.GCAttachment{} // plugins want an empty list, not null
		}
		if err := n.libcni.GCNetworkList(ctx, lists[name], &libcni.GCArgs{ValidAttachments: keep}); err != nil {
			errs = append(errs, fmt.Errorf("collect what is left of old attachments to network %s: %w", name, plain(err)))
		}
	}
	return errors.Join(errs...)
}

// lock waits until no plugin works for a sandbox any more, ours or one that an
// earlier crid has left at work.
func (n *Network) lock(ctx context.Context, id string) (unlock func(), err error) {
	if unlock, err = n.ids.Lock(ctx, id); err == nil {
		if err = n.settle(ctx, id); err == nil {
			return unlock, nil
		}
		unlock()
	}
	return nil, fmt.Errorf("wait for another call to CNI for sandbox %s: %w", id, err)
}

// call makes libcni's arguments for a, which must have been planned.
func (n *Network) call(ctx context.Context, a Attachment) (*libcni.NetworkConfigList, *libcni.RuntimeConf, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("call CNI plugins for sandbox %s: %w", a.ID, err)
	}
	if len(a.Config) == 0 {
		return nil, nil, errkind.Errorf(errkind.BadState, "attachment of sandbox %s has no network configuration: it was not planned", a.ID)
	}
	list, err := parseList(a.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("network configuration kept for sandbox %s: %w", a.ID, err)
	}
	return list, &libcni.RuntimeConf{
		ContainerID: a.ID,
		NetNS:       a.NetNS,
		IfName:      ifName(a),
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, // else plugins refuse arguments that they do not know
			{"K8S_POD_NAMESPACE", a.Namespace},
			{"K8S_POD_NAME", a.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", a.ID},
			{"K8S_POD_UID", a.UID},
		},
		CapabilityArgs: capabilityArgs(a),
	}, nil
}

func ifName(a Attachment) string {
	if a.IfName == "" {
		return DefaultIfName
	}
	return a.IfName
}

// isNamespace reports whether path is a namespace and not, say, the plain file
// that its bind mount leaves behind.
func isNamespace(path string) bool {
	const nsfsMagic = 0x6e736673
	var st syscall.Statfs_t
	return path != "" && syscall.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

// parseList is the inverse of encodeList.
func parseList(b []byte) (*libcni.NetworkConfigList, error) {
	var shape struct {
		Plugins []json.RawMessage `json:"plugins"`
	}
	if err := json.Unmarshal(b, &shape); err != nil {
		return nil, err
	}
	if len(shape.Plugins) == 0 {
		return nil, errkind.Errorf(errkind.Invalid, "it lists no plugins")
	}
	return libcni.NetworkConfFromBytes(b)
}
