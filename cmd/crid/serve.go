package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/cni"
	"github.com/cridproject/crid/cri"
	"github.com/cridproject/crid/cri/stream"
	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/image/signature"
	"github.com/cridproject/crid/internal/metrics"
	"github.com/cridproject/crid/internal/quiet"
	"github.com/cridproject/crid/internal/sys"
	"github.com/cridproject/crid/internal/trace/otlp"
	"github.com/cridproject/crid/sandbox"
	"github.com/cridproject/crid/sandbox/spec/cdi"
	"github.com/cridproject/crid/sandbox/spec/host"
)

const (
	// maxMessage bounds a gRPC message both ways: kubelet's own limit.
	maxMessage = 16 << 20
	// socketMode lets root's group manage pods, as with other runtimes.
	socketMode = 0o660
	// rootMode and stateMode let other users pass through to what is theirs, such
	// as a container's files, and list nothing.
	rootMode, stateMode = 0o711, 0o711
)

// daemon is all parts of a crid that serves.
type daemon struct {
	config  Config
	link    link
	images  *image.Store
	network *cni.Network
	manager *sandbox.Manager
	streams *stream.Server
	server  *grpc.Server
	admin   *http.Server
	metrics *metrics.Metrics
	tracing *otlp.Exporter // nil without
	scraped *scrapeServer  // nil without an address of its own

	quiet      quiet.Collector
	background sync.WaitGroup
	closers    []func() // in the order of making; called backwards
}

// serve is the daemon: it builds the parts, serves until a signal comes, and
// goes. Containers and the monitor stay.
func (p program) serve(ctx context.Context, c Config) error {
	if uid := os.Geteuid(); uid != 0 {
		return fmt.Errorf("to serve, it must run as root, not as user %d: it makes mounts, namespaces and cgroups", uid)
	}
	if err := setUpLogging(c, p.err); err != nil {
		return err
	}
	// It is idle for most of the time: memory counts for more than the time of a
	// collection.
	debug.SetGCPercent(50)
	syscall.Umask(0o022) //nolint:forbidigo // the program's own, before there is anything else in it
	// Caught and dropped, not ignored: a lost reader of the log must not end crid,
	// and ignoring would be inherited by plugins.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	log := klog.Background()
	ctx = klog.NewContext(ctx, log)
	log.Info("Starting crid", "version", version(), "pid", os.Getpid(), "root", c.Root, "state", c.State)

	d := &daemon{config: c}
	defer d.close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	defer signal.Stop(signals)
	d.background.Go(func() { answerSignals(ctx, signals, p.err) })
	cri, admin, err := d.build(ctx)
	if err != nil {
		stop()
		d.background.Wait()
		return err
	}
	return d.run(ctx, stop, cri, admin)
}

// build makes the parts, each before those that need it. The sockets are the
// last: when they open, everything has been recovered.
func (d *daemon) build(ctx context.Context) (criSocket, adminSocket net.Listener, err error) {
	if err := d.folders(); err != nil {
		return nil, nil, err
	}
	// State too: a crid with another root would take what runs here for leftovers.
	for _, f := range []struct{ key, dir string }{{"root", d.config.Root}, {"state", d.config.State}} {
		unlock, err := lockFolder(ctx, f.key, f.dir)
		if err != nil {
			return nil, nil, err
		}
		d.closers = append(d.closers, unlock)
	}
	kept := passedSocket(ctx, d.config.Socket)
	if kept == nil {
		// Now rather than after minutes of recovery.
		if err := removeStale(ctx, d.config.Socket); err != nil {
			return nil, nil, err
		}
	}
	if err := d.parts(ctx); err != nil {
		return nil, nil, err
	}
	if adminSocket, err = listen(ctx, adminPath(d.config), 0o600); err != nil {
		return nil, nil, err
	}
	if kept != nil {
		return kept, adminSocket, nil
	}
	opened, err := listen(ctx, d.config.Socket, socketMode)
	if err != nil {
		_ = adminSocket.Close()
		return nil, nil, err
	}
	keepSocket(ctx, opened)
	return opened, adminSocket, nil
}

func (d *daemon) folders() error {
	c := d.config
	for _, f := range []struct {
		path string
		mode os.FileMode
	}{{c.Root, rootMode}, {c.State, stateMode}, {c.NetNSDir, 0o755}, {c.CNI.CacheDir, 0o700}, {filepath.Dir(c.Socket), 0o755}} {
		if err := os.MkdirAll(f.path, f.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	return nil
}

func (d *daemon) parts(ctx context.Context) error {
	c := d.config
	d.metrics = d.newMetrics()
	if err := d.startTracing(ctx); err != nil {
		return err
	}
	if err := d.listenForScrapes(ctx); err != nil {
		return err
	}
	facts, err := host.Probe()
	if err != nil {
		return err
	}
	driver := c.cgroupDriver()
	klog.FromContext(ctx).Info("Looked at the node", "cgroups", sys.CgroupMode().String(), "cgroupDriver", driver,
		"controllers", facts.Controllers, "appArmor", facts.HasAppArmor, "seLinux", facts.HasSELinux, "minOOMScoreAdj", facts.MinOOMScoreAdj)
	if d.images, err = openStore(c, d.metrics); err != nil {
		return err
	}
	d.closers = append(d.closers, func() { _ = d.images.Close() })
	layers := measured(d.images)
	klog.FromContext(ctx).Info("Looked at the file system of root", "writableLayersMeasured", layers.Measured, "reason", layers.Reason)
	d.network, err = cni.New(cni.Options{
		ConfDir: c.CNI.ConfDir, BinDirs: c.CNI.BinDirs, CacheDir: c.CNI.CacheDir, Timeout: c.CNI.Timeout.Duration,
		OnCall: d.metrics.CNICall,
	})
	if err != nil {
		return err
	}
	noUserNS := sandbox.ProbeUserNS(filepath.Join(c.Root, "layers"), filepath.Join(c.Root, "rootfs"), c.State)
	if noUserNS != nil {
		klog.FromContext(ctx).Info("Pods cannot have user namespaces on this node", "reason", noUserNS)
	}
	node := cri.DetectNode()
	node.UserNamespaces = noUserNS == nil
	d.link.options = spawnOptions(c)
	devices := cdi.New(c.CDISpecDirs)
	log := klog.FromContext(ctx)
	log.Info("Looked for CDI devices", "paths", c.CDISpecDirs, "devices", len(devices.Status(log).Devices))
	d.manager, err = sandbox.New(ctx, sandbox.Options{
		Root: c.Root, StateDir: c.State, NetNSDir: c.NetNSDir,
		Network: d.network, Images: d.images, Devices: devices, ConnectMonitor: d.link.connect,
		CgroupParent: c.CgroupParent, SystemdCgroup: driver == driverSystemd,
		Host: facts, StrictMounts: c.StrictMounts, LogRate: int64(c.LogRateLimit), NoUserNS: noUserNS,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.manager.Close)
	d.streams, err = stream.New(stream.Options{
		Runtime: d.manager, Address: c.Streaming.Address, Port: uint16(c.Streaming.Port),
		Certificate: c.Streaming.TLSCertFile, Key: c.Streaming.TLSKeyFile, IdleTimeout: c.Streaming.IdleTimeout.Duration,
	})
	if err != nil {
		return err
	}
	d.closers = append(d.closers, d.streams.Close)
	server, err := cri.New(cri.Options{
		Sandboxes: d.manager, Images: d.images, Streams: d.streams,
		NetworkStatus: d.network.Status, RuntimeStatus: d.link.status,
		CgroupDriver: driver, Version: version(), Node: &node,
		Config: verboseConfig{c, c.State, c.Root}, MonitorDump: d.link.dump,
		Devices: func(ctx context.Context) any { return devices.Status(klog.FromContext(ctx)) }, WritableLayers: layers,
	})
	if err != nil {
		return err
	}
	observers := d.observers()
	d.server = grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.ChainUnaryInterceptor(cri.UnaryInterceptor(log, observers...), afterWork(&d.quiet)),
		grpc.StreamInterceptor(cri.StreamInterceptor(log, observers...)),
	)
	server.Register(d.server)
	d.quiet.Worked() // what recovery has left
	d.admin = newAdminServer(ctx, d.images, d.metrics)
	return nil
}

// verboseConfig is what a verbose Status shows: tools look for these two names.
type verboseConfig struct {
	Config
	StateDir string `json:"stateDir"`
	RootDir  string `json:"rootDir"`
}

// run serves until ctx ends or a server fails.
func (d *daemon) run(ctx context.Context, stop context.CancelFunc, criSocket, adminSocket net.Listener) error {
	failed := make(chan error, 5)
	streamCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	endStreams := func() { cancel(errors.New("crid is ending")) }
	defer endStreams()
	d.background.Go(func() { failed <- d.streams.Serve(streamCtx) })
	d.background.Go(func() { failed <- d.server.Serve(criSocket) })
	d.background.Go(func() { failed <- d.admin.Serve(adminSocket) })
	if d.scraped != nil {
		d.background.Go(func() { failed <- d.scraped.serve() })
	}
	d.background.Go(func() {
		if err := d.network.Watch(ctx); err != nil && ctx.Err() == nil {
			failed <- err
		}
	})

	log := klog.FromContext(ctx)
	log.Info("Serving CRI", "path", d.config.Socket, "streams", d.streams.Addr())
	if err := notify("READY=1", nil); err != nil {
		log.Error(err, "Could not tell the service manager that crid is ready")
	}
	var err error
	select {
	case <-ctx.Done():
		log.Info("Stopping: containers run on")
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	}
	stop() // a second signal ends the process at once
	_ = notify("STOPPING=1", nil)
	d.drain(endStreams)
	return err
}

// drain lets requests under way finish, for a while. Streams, which may last for
// days, are not waited for: they end with the last request.
func (d *daemon) drain(endStreams func()) {
	ctx, cancel := context.WithTimeout(context.Background(), d.config.DrainTimeout.Duration)
	defer cancel()
	d.manager.EndEvents() // else the streams of events end with the limit only
	done := make(chan struct{})
	go func() {
		d.server.GracefulStop()
		close(done)
	}()
	if err := d.admin.Shutdown(ctx); err != nil && !errors.Is(err, http.ErrServerClosed) {
		_ = d.admin.Close()
	}
	select {
	case <-done:
	case <-ctx.Done():
		klog.Background().Info("Cutting off requests that did not finish in time", "duration", d.config.DrainTimeout.Duration)
		d.server.Stop()
		<-done
	}
	if d.scraped != nil {
		_ = d.scraped.http.Close()
	}
	endStreams()
	d.background.Wait()
}

// close ends the parts, the last first.
func (d *daemon) close() {
	for i := len(d.closers) - 1; i >= 0; i-- {
		d.closers[i]()
	}
	klog.Flush()
}

// cgroupDriver resolves "auto".
func (c Config) cgroupDriver() string {
	switch {
	case c.CgroupDriver != driverAuto:
		return c.CgroupDriver
	case sys.SystemdBooted() && sys.CgroupMode() == sys.CgroupUnified:
		return driverSystemd
	}
	return driverCgroupfs
}

// openStore opens the image store. The caller holds the lock of root.
func openStore(c Config, o image.Observer) (*image.Store, error) {
	signatures, err := openSignatures(c)
	if err != nil {
		return nil, err
	}
	store, err := image.New(image.Options{
		Signatures:      signatures,
		Root:            filepath.Clean(c.Root),
		RegistryDirs:    c.Registry.ConfigDirs,
		MaxDownloads:    c.Registry.MaxConcurrentDownloads,
		ProgressTimeout: c.Registry.ProgressTimeout.Duration,
		WritableLimit:   c.writableLimit(),
		FirstProject:    uint32(c.FirstProjectID),
		Pinned:          c.Images.Pinned,
		Observer:        o,
	})
	return store, noLimit(err)
}

func (c Config) writableLimit() image.WritableLimit {
	return image.WritableLimit{Bytes: uint64(c.WritableLayerLimit), Inodes: uint64(c.WritableLayerInodeLimit)}
}

// noLimit names the keys in an image.ErrNoLimit, and leaves other errors as they are.
func noLimit(err error) error {
	if errors.Is(err, image.ErrNoLimit) {
		return fmt.Errorf("writable_layer_limit and writable_layer_inode_limit must be 0, or the file system of root be another: %w", err)
	}
	return err
}

// writableLayers is how writable layers are measured, for the log and a verbose Status.
type writableLayers struct {
	Measured string `json:"measured"`
	Reason   string `json:"reason,omitempty"` // why it is not by project quota
}

func measured(s *image.Store) writableLayers {
	if err := s.NoQuota(); err != nil {
		return writableLayers{"by walking them", err.Error()}
	}
	return writableLayers{Measured: "by project quota"}
}

// openSignatures reads the signature policy; nil without one.
func openSignatures(c Config) (*signature.Checker, error) {
	if c.Images.SignaturePolicy == "" {
		return nil, nil
	}
	checker, err := signature.New(signature.Options{
		PolicyFile: c.Images.SignaturePolicy,
		Program:    programPath("crid-verify", c.Images.SignatureVerifier),
	})
	if err != nil {
		return nil, fmt.Errorf("images.signature_policy: %w", err)
	}
	return checker, nil
}
