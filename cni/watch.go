package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/fsnotify/fsnotify"
	"k8s.io/klog/v2"
)

const (
	settle      = 100 * time.Millisecond // from the first sign of a change to reading the folder
	pollEvery   = 5 * time.Second        // where the kernel has no inotify instance left
	verdictAge  = 10 * time.Second       // older ones are renewed when somebody asks
	statusLimit = 10 * time.Second       // for all plugins' STATUS together
)

// State is what is known of the network, as of At.
type State struct {
	Name string // of the network in use; "" when there is none
	File string // that it was read from

	// Problem says why what the folder says now is not what is in use: its file is
	// broken, and the network read before goes on being used.
	Problem error

	// Err says why no pod can be attached now; nil means that the network is ready.
	Err error

	At time.Time

	list   *libcni.NetworkConfigList
	status error // the plugins' own verdict
}

// Status says whether pods can be attached: nil, or an error that says what is
// missing and where it was looked for. It never waits: it is the verdict as of
// a few seconds ago, which Watch renews.
func (n *Network) Status() error { return n.State().Err }

// State is Status with what else there is to know. It never waits.
func (n *Network) State() State {
	s := n.state.Load()
	if time.Since(s.At) > verdictAge {
		select {
		case n.refresh <- struct{}{}:
		default:
		}
	}
	return *s
}

// answer is what the plugins of list say of themselves.
type answer struct {
	list *libcni.NetworkConfigList
	err  error
}

// Watch follows changes of the configuration folder and renews the verdict for
// Status, until ctx ends. It must be called once.
func (n *Network) Watch(ctx context.Context) error {
	log := klog.FromContext(ctx)
	w, err := fsnotify.NewWatcher()
	events, errs, poll := (<-chan fsnotify.Event)(nil), (<-chan error)(nil), (<-chan time.Time)(nil)
	if err == nil {
		defer func() { _ = w.Close() }()
		events, errs = w.Events, w.Errors
	} else {
		log.Error(err, "Could not watch the CNI configuration folder, will read it now and then", "path", n.confDir)
		ticker := time.NewTicker(pollEvery)
		defer ticker.Stop()
		poll = ticker.C
	}
	var changed <-chan time.Time // the moment when a change is looked at
	var verdict chan answer      // not nil while plugins are asked for their status
	defer func() {
		if verdict != nil {
			<-verdict // it ends with ctx
		}
	}()
	ask := func() {
		if verdict == nil {
			verdict = make(chan answer, 1)
			go func(list *libcni.NetworkConfigList, to chan<- answer) {
				to <- answer{list, n.askPlugins(ctx, list)}
			}(n.state.Load().list, verdict)
		}
	}
	reload := func() {
		if w != nil {
			arm(log, w, n.confDir, n.state.Load().Name)
		}
		if n.load() {
			s := n.state.Load()
			log.Info("Read CNI configuration", "path", s.File, "network", s.Name, "problem", s.Problem, "err", s.Err)
			ask()
		}
	}
	reload()
	ask()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-events:
			if changed == nil && concerns(ev.Name, n.confDir) {
				changed = time.After(settle)
			}
		case err := <-errs:
			// Events were lost: look at everything.
			log.Info("Lost events of the CNI configuration folder", "path", n.confDir, "err", err)
			changed = time.After(settle)
		case <-poll:
			reload()
		case <-changed:
			changed = nil
			reload()
		case <-n.refresh:
			ask()
		case a := <-verdict:
			verdict = nil
			if a.list != n.state.Load().list {
				ask() // the network has changed meanwhile
				continue
			}
			n.publish(func(s *State) { s.status = a.err })
		}
	}
}

// load reads the configuration folder and publishes what it finds. It reports
// whether that is something new.
//
// Preconditions: called by New and then by Watch only, as is publish.
func (n *Network) load() bool {
	file, list, err := loadDir(n.confDir)
	old := n.state.Load()
	if old == nil {
		old = &State{}
	}
	s := n.publish(func(s *State) {
		switch {
		case list != nil && s.list != nil && bytes.Equal(s.list.Bytes, list.Bytes):
			s.File, s.Problem = file, nil
		case list != nil:
			*s = State{Name: list.Name, File: file, list: list}
		case file != "" && s.list != nil:
			// Broken, perhaps only half written: keep what worked.
			s.Problem = err
		default:
			*s = State{Problem: err}
		}
	})
	return s.list != old.list || text(s.Problem) != text(old.Problem) || text(s.Err) != text(old.Err)
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// publish changes the state and derives the verdict from it.
func (n *Network) publish(change func(*State)) *State {
	var s State
	if old := n.state.Load(); old != nil {
		s = *old
	}
	change(&s)
	s.At = time.Now()
	switch {
	case s.list == nil:
		s.Err = s.Problem
	default:
		if s.Err = n.missing(s.list); s.Err == nil {
			s.Err = s.status
		}
	}
	n.state.Store(&s)
	return &s
}

// missing says which plugin of list is not installed.
func (n *Network) missing(list *libcni.NetworkConfigList) error {
	for _, p := range list.Plugins {
		if _, err := n.exec.FindInPath(p.Network.Type, n.exec.binDirs); err != nil {
			return fmt.Errorf("network %s: %w", list.Name, err)
		}
	}
	return nil
}

// askPlugins has the plugins of a network of specification 1.1 say whether
// they could attach a pod now.
func (n *Network) askPlugins(ctx context.Context, list *libcni.NetworkConfigList) error {
	if list == nil || n.missing(list) != nil {
		return nil // there is a worse problem, and it is known
	}
	if newer, err := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); err != nil || !newer {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusLimit)
	defer cancel()
	if err := n.libcni.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s is not ready: %w", list.Name, plain(err))
	}
	return nil
}

// arm watches dir, the folder above it (or the nearest one above that exists),
// and the folder in dir where a network may keep its plugins. The folder above
// shows when dir is made, or replaced by another.
func arm(log klog.Logger, w *fsnotify.Watcher, dir, network string) {
	add := func(path string) bool {
		err := w.Add(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			log.Error(err, "Could not watch a folder", "path", path)
		}
		return err == nil
	}
	there := add(dir)
	for above := filepath.Dir(dir); !add(above) && above != "/"; {
		above = filepath.Dir(above)
	}
	if !there {
		// Made between the two: its own watch would be missing.
		if _, err := os.Stat(dir); err == nil {
			there = add(dir)
		}
	}
	if there && network != "" {
		add(filepath.Join(dir, network))
	}
}

// concerns reports whether a change of path may change what is in dir.
func concerns(path, dir string) bool {
	return strings.HasPrefix(path+"/", dir+"/") || strings.HasPrefix(dir+"/", path+"/")
}
