package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/errdefs"
	clientlog "github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
	"golang.org/x/net/http/httpproxy"

	"github.com/cridproject/crid/internal/errkind"
)

// This file is all that knows containerd's client: what hosts.toml means, and how
// a challenge is written, are its matter. The requests are ours, see remote.

const (
	hostsFile     = "hosts.toml"
	maxConnsPerIP = 32 // connections of one pull to one host, far above what it uses
)

// hostsOf is who is asked for what host has, in this order, and the folder in which that
// was found, "" for none.
func hostsOf(ctx context.Context, dirs []string, host string) (dir string, hosts []*endpoint, err error) {
	if dir, err = configFor(dirs, host); err == nil {
		hosts, err = readHosts(ctx, dir, host)
	}
	return dir, hosts, err
}

// closeIdle ends the hosts' connections that are not in use.
func closeIdle(hosts []*endpoint) {
	for _, e := range hosts {
		for _, t := range e.transports {
			t.CloseIdleConnections()
		}
	}
}

// configFor is the folder with the configuration of host: the first of dirs that
// has one, named after the host as containerd names it, else "_default". "" means
// that there is none.
func configFor(dirs []string, host string) (string, error) {
	for _, root := range dirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", errkind.Errorf(errkind.Invalid, "registry configuration of %s: %w", host, err)
		}
		return dir, nil
	}
	return "", nil
}

// readHosts reads the configuration in dir, if there is one. A file that cannot be
// understood fails the pull: going past a mirror in silence would be worse.
func readHosts(ctx context.Context, dir, host string) ([]*endpoint, error) {
	path := filepath.Join(dir, hostsFile)
	if dir != "" {
		data, err := os.ReadFile(path)
		if err != nil && !isGone(err) {
			return nil, errkind.Errorf(errkind.Invalid, "registry configuration of %s: %w", host, err)
		}
		var any map[string]any
		if err := toml.Unmarshal(data, &any); err != nil {
			line := ""
			if at, ok := errors.AsType[*toml.DecodeError](err); ok {
				n, _ := at.Position()
				line = fmt.Sprintf(":%d", n)
			}
			return nil, errkind.Errorf(errkind.Invalid, "registry configuration %s%s: %w", path, line, err)
		}
	}
	proxy := httpproxy.FromEnvironment().ProxyFunc()
	var transports []*http.Transport
	strict := make(map[*http.Client]*http.Transport)
	log := &configLog{}
	found, err := config.ConfigureHosts(clientlog.WithLogger(ctx, log.entry()), config.HostOptions{
		HostDir: func(string) (string, error) { return dir, nil },
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				t.ResponseHeaderTimeout = 0 // measured by endpoint.send, for all of an answer's beginning
				t.Proxy = func(r *http.Request) (*url.URL, error) { return proxy(r.URL) }
				t.MaxConnsPerHost, t.MaxIdleConnsPerHost, t.MaxIdleConns = maxConnsPerIP, maxConnsPerIP, 0
				t.DisableCompression = true // digests are of the bytes as they are stored
				transports, strict[c] = append(transports, t), t
			}
			return nil
		},
	})(host)
	if err = cmp.Or(err, log.err); err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "registry configuration %s: %w", path, err)
	}
	var hosts []*endpoint
	for _, h := range found {
		e := &endpoint{
			scheme: h.Scheme, host: h.Host, path: h.Path, header: h.Header, client: h.Client, transports: transports, proxy: proxy,
			canPull: h.Capabilities.Has(docker.HostCapabilityPull), canResolve: h.Capabilities.Has(docker.HostCapabilityResolve),
			canRefer: h.Capabilities.Has(docker.HostCapabilityReferrers),
			// A mirror is another host: it gets the credentials only when it is the
			// registry itself under its own name.
			own: hubName(h.Host) == hubName(host),
		}
		e.namespace = host
		if e.own {
			e.namespace = ""
		}
		if _, plain := h.Client.Transport.(*http.Transport); !plain {
			e.fallsBack = true // to plain HTTP, as the client does for localhost
			h.Client.Transport = &fallback{host: h.Host, own: h.Client.Transport, others: strict[h.Client]}
		}
		hosts = append(hosts, e)
	}
	return hosts, nil
}

// fallback confines the client's fallback to plain HTTP to the host that it is for:
// token servers and hosts that a redirect leads to get nothing in the clear.
type fallback struct {
	host        string
	own, others http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (f *fallback) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Host == f.host {
		return f.own.RoundTrip(r)
	}
	return f.others.RoundTrip(r)
}

// configLog gets what the client logs while it reads hosts.toml. It goes on without
// the file after an error that it logs; here that is an error.
type configLog struct {
	mu  sync.Mutex
	err error // +checklocks:mu
}

func (l *configLog) entry() *logrus.Entry {
	to := logrus.New()
	to.SetOutput(io.Discard)
	to.AddHook(l)
	return logrus.NewEntry(to)
}

func (*configLog) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire implements logrus.Hook.
func (l *configLog) Fire(e *logrus.Entry) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	cause, ok := e.Data[logrus.ErrorKey].(error)
	if !ok {
		cause = fmt.Errorf("%s", e.Message)
	}
	l.err = cmp.Or(l.err, cause)
	return nil
}

// challenge is what a server wants before it answers.
type challenge struct {
	basic          bool
	realm, service string
	scopes         []string
}

// challengesOf reads the WWW-Authenticate headers: those that can be met, the best
// first.
func challengesOf(h http.Header) (all []challenge) {
	for _, c := range auth.ParseAuthHeader(h) {
		switch c.Scheme {
		case auth.BearerAuth:
			all = append(all, challenge{realm: c.Parameters["realm"], service: c.Parameters["service"], scopes: strings.Fields(c.Parameters["scope"])})
		case auth.BasicAuth:
			all = append(all, challenge{basic: true})
		}
	}
	return all
}

// silenceOf bounds how long one of the hosts may take to begin an answer: a mirror
// that hangs must leave time for those behind it.
func silenceOf(limit time.Duration, last bool) time.Duration {
	const mirror = 30 * time.Second
	switch {
	case last || limit > 0 && limit < mirror:
		return limit
	}
	return mirror
}
