package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	clientlog "github.com/containerd/log"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"
	"k8s.io/klog/v2"

	"github.com/cridproject/crid/internal/errkind"
)

// registryUnavailable begins the text of errors that mean that no registry could
// be reached. kubelet looks for it at the very beginning.
const registryUnavailable = "RegistryUnavailable: "

// remote is one repository of a registry, as seen with one set of credentials.
// This file is all that knows the registry client.
type remote struct {
	ref      Reference
	resolver remotes.Resolver
	fetcher  remotes.Fetcher
	// transports are those of this pull alone: its hosts.toml may say how to connect.
	transports []*http.Transport
}

// connect reads the hosts.toml files, so that a change of them counts from the
// next pull on. Nothing is sent yet. A host that takes longer than silence (0 or
// less means no limit) to begin an answer counts as one that cannot be reached.
func connect(ctx context.Context, ref Reference, c credentials, dirs []string, silence time.Duration) (*remote, error) {
	ctx = clientContext(ctx)
	dir, err := hostDir(dirs, ref.Host)
	if err != nil {
		return nil, err
	}
	// A mirror is another host: it gets the credentials only when it is the
	// registry itself under its own name.
	own := func(host string) bool { return strings.EqualFold(hubName(host), hubName(ref.Host)) }
	r := &remote{ref: ref}
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{
		HostDir: func(string) (string, error) { return dir, nil },
		UpdateClient: func(c *http.Client) error {
			if t, ok := c.Transport.(*http.Transport); ok {
				t.ResponseHeaderTimeout = max(silence, 0)
				r.transports = append(r.transports, t)
			}
			return nil
		},
		Credentials: func(host string) (string, string, error) {
			if !own(host) {
				return "", "", nil
			}
			return c.user, c.secret, nil
		},
	})(ref.Host)
	if err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "registry configuration %s: %w", filepath.Join(dir, "hosts.toml"), err)
	}
	hosts = guardHosts(hosts, own, c.token)
	r.resolver = docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": {"crid"}},
		Hosts:   func(string) ([]docker.RegistryHost, error) { return hosts, nil },
	})
	r.fetcher, err = r.resolver.Fetcher(ctx, ref.String())
	return r, err
}

// close ends the connections that are not in use. Another pull may still have one,
// of a download that they share.
func (r *remote) close() {
	for _, t := range r.transports {
		t.CloseIdleConnections()
	}
}

// hostDir finds the folder with the configuration of host: the first of dirs that
// has one, named after the host as containerd names it. A file that cannot be
// understood fails the pull: going past a mirror in silence would be worse.
func hostDir(dirs []string, host string) (string, error) {
	for _, root := range dirs {
		dir, err := config.HostDirFromRoot(root)(host)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return "", errkind.Errorf(errkind.Invalid, "registry configuration of %s: %w", host, err)
		}
		path := filepath.Join(dir, "hosts.toml")
		data, err := os.ReadFile(path)
		if err != nil && !isGone(err) {
			return "", errkind.Errorf(errkind.Invalid, "registry configuration of %s: %w", host, err)
		}
		var any map[string]any
		if err := toml.Unmarshal(data, &any); err != nil {
			return "", errkind.Errorf(errkind.Invalid, "registry configuration %s: %w", path, err)
		}
		return dir, nil
	}
	return "", nil
}

// guardHosts leaves the hosts that may be pulled from and makes sure of where
// credentials go.
func guardHosts(all []docker.RegistryHost, own func(string) bool, token string) []docker.RegistryHost {
	var hosts []docker.RegistryHost
	for _, h := range all {
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		if token != "" && own(h.Host) {
			h.Authorizer = &tokenAuthorizer{host: h.Host, token: token}
		}
		client := *h.Client
		client.CheckRedirect = guardRedirect(h.Authorizer)
		h.Client = &client
		hosts = append(hosts, h)
	}
	return hosts
}

// guardRedirect takes the credentials off a request that is sent on to another
// host, port or scheme. net/http does so only for another domain. The other host
// may ask for credentials of its own, which can only be an anonymous token.
func guardRedirect(a docker.Authorizer) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		first := via[0].URL
		if req.URL.Host == first.Host && req.URL.Scheme == first.Scheme {
			return nil
		}
		req.Header.Del("Authorization")
		req.Header.Del("Cookie")
		req.Header.Del("Referer")
		if a == nil || req.URL.Scheme != "https" {
			return nil
		}
		return a.Authorize(req.Context(), req)
	}
}

// tokenAuthorizer sends a registry token as it is, to one host.
type tokenAuthorizer struct{ host, token string }

func (a *tokenAuthorizer) Authorize(_ context.Context, req *http.Request) error {
	if req.URL.Host == a.host {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	return nil
}

// AddResponses refuses to try again: there is no other token.
func (a *tokenAuthorizer) AddResponses(context.Context, []*http.Response) error {
	return docker.ErrInvalidAuthorization
}

// resolve asks for the manifest that ref, of the same repository, leads to now.
func (r *remote) resolve(ctx context.Context, ref Reference) (ocispec.Descriptor, error) {
	_, desc, err := r.resolver.Resolve(clientContext(ctx), ref.String())
	if err != nil {
		what := ""
		if ref != r.ref {
			what = ref.String()
		}
		return desc, r.explain(ctx, what, err)
	}
	return desc, nil
}

// referrers lists the manifests of the same repository that say that they are
// about d (OCI distribution specification, "Listing Referrers"), also from a
// registry that has them as an index with a tag instead. artifactType "" means
// all. None is no error.
func (r *remote) referrers(ctx context.Context, d digest.Digest, artifactType string) ([]ocispec.Descriptor, error) {
	var options []remotes.FetchReferrersOpt
	if artifactType != "" {
		options = append(options, remotes.WithReferrerArtifactTypes(artifactType))
	}
	found, err := r.fetcher.(remotes.ReferrersFetcher).FetchReferrers(clientContext(ctx), d, options...)
	if err != nil {
		return nil, r.explain(ctx, "referrers of "+d.String(), err)
	}
	return found, nil
}

// open fetches what desc names, from offset on. Nothing is verified. The request
// is made at the first read, which is why readers explain their errors.
func (r *remote) open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	// A manifest can name any URL; the daemon must not be made to ask the node's
	// network for it. Layers that only those have are Windows'.
	desc.URLs = nil
	body, err := r.fetcher.Fetch(clientContext(ctx), desc)
	if err != nil {
		return nil, err
	}
	if offset > 0 {
		if _, err := body.(io.Seeker).Seek(offset, io.SeekStart); err != nil {
			return nil, errors.Join(err, body.Close())
		}
	}
	return body, nil
}

// transient reports whether asking again may help.
func (r *remote) transient(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		return status.StatusCode >= 500 || status.StatusCode == http.StatusTooManyRequests || status.StatusCode == http.StatusRequestTimeout
	}
	return !errdefs.IsNotFound(err) && !errors.Is(err, docker.ErrInvalidAuthorization) &&
		!errdefs.IsFailedPrecondition(err) && !errors.Is(err, context.Canceled)
}

// explain says what an error of the client means. what is the part of the image
// that was asked for, "" for its manifest.
func (r *remote) explain(ctx context.Context, what string, err error) error {
	return &namedError{r.named(ctx, what, err)}
}

func (r *remote) named(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull %s: %w", r.ref, context.Cause(ctx))
	}
	if errkind.Of(err) != errkind.Other && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	name := r.ref.String()
	if what != "" {
		name += " (" + what + ")"
	}
	var status remoteerrors.ErrUnexpectedStatus
	var dial *net.OpError
	var dns *net.DNSError
	var request *url.Error
	var cert *tls.CertificateVerificationError
	switch text := withoutSecrets(err); {
	case errors.As(err, &status):
		return explainStatus(name, status, text)
	case errors.Is(err, docker.ErrInvalidAuthorization):
		return errkind.Errorf(errkind.Other, "pull access to %s denied: it does not exist, or other credentials are needed: %s", name, text)
	case errdefs.IsNotFound(err):
		return errkind.Errorf(errkind.NotFound, "image %s: not found in the registry", name)
	case errdefs.IsNotImplemented(err):
		return errkind.Errorf(errkind.Invalid, "image %s: %s", name, text)
	case errors.As(err, &dial), errors.As(err, &dns), errors.As(err, &cert), errors.As(err, &request):
		return errkind.Errorf(errkind.Unavailable, registryUnavailable+"image %s: %s", name, text)
	default:
		return errkind.Errorf(errkind.Unavailable, "image %s: %s", name, text)
	}
}

func explainStatus(name string, s remoteerrors.ErrUnexpectedStatus, text string) error {
	text += registryMessage(s.Body)
	switch {
	case s.StatusCode >= 500:
		return errkind.Errorf(errkind.Unavailable, registryUnavailable+"image %s: %s", name, text)
	case s.StatusCode == http.StatusTooManyRequests:
		return errkind.Errorf(errkind.Unavailable, "image %s: the registry limits how often it is asked, try later or with credentials: %s", name, text)
	case s.StatusCode == http.StatusUnauthorized, s.StatusCode == http.StatusForbidden:
		return errkind.Errorf(errkind.Other, "pull access to %s denied: it does not exist, or other credentials are needed: %s", name, text)
	case s.StatusCode == http.StatusNotFound:
		return errkind.Errorf(errkind.NotFound, "image %s: not found in the registry: %s", name, text)
	}
	return errkind.Errorf(errkind.Other, "image %s: %s", name, text)
}

// registryMessage is what the registry says in its answer, as one line.
func registryMessage(body []byte) string {
	const limit = 300
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body[:min(len(body), limit)]), "?")), " ")
	if text == "" || strings.HasPrefix(text, "<") { // a page for people
		return ""
	}
	return ": " + withoutSecrets(errors.New(text))
}

var (
	urlQuery = regexp.MustCompile(`(https?://[^\s"?]+)\?[^\s"]*`)
	urlUser  = regexp.MustCompile(`(https?://)[^/\s"@]+@`)
)

// withoutSecrets is the error's text without what URLs may carry: signatures of
// redirects to a blob store, names and passwords.
func withoutSecrets(err error) string {
	return urlUser.ReplaceAllString(urlQuery.ReplaceAllString(err.Error(), "$1"), "$1")
}

// clientContext makes the client log through klog, at the level of external
// calls: it logs what it also returns.
func clientContext(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	log := klog.FromContext(ctx)
	if log.V(4).Enabled() {
		l.AddHook(logHook{log})
	}
	return clientlog.WithLogger(ctx, logrus.NewEntry(l))
}

// logHook passes the client's messages on, without their fields: those hold
// headers.
type logHook struct{ log klog.Logger }

func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

func (h logHook) Fire(e *logrus.Entry) error {
	var err string
	if cause, ok := e.Data[logrus.ErrorKey].(error); ok {
		err = withoutSecrets(cause)
	}
	h.log.V(4).Info("Registry client", "text", withoutSecrets(errors.New(e.Message)), "host", e.Data["host"], "err", err)
	return nil
}
