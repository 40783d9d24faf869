package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/cridproject/crid/internal/errkind"
)

// registryUnavailable begins the text of errors that mean that no registry could
// be reached. kubelet looks for it at the very beginning.
const registryUnavailable = "RegistryUnavailable: "

// hostError is why one host did not give what it was asked for.
type hostError struct {
	host *endpoint
	err  error
}

// chainError is why none of the hosts did, in the order in which they were asked.
type chainError struct {
	remote *remote
	tries  []hostError
}

func (c *chainError) Error() string {
	var texts []string
	for _, t := range c.tries {
		texts = append(texts, fmt.Sprintf("%s (%s): %s", t.host, c.remote.creds.at(t.host), withoutSecrets(plainError(t.err))))
	}
	return strings.Join(texts, "; then ")
}

func (c *chainError) Unwrap() []error {
	errs := make([]error, 0, len(c.tries))
	for _, t := range c.tries {
		errs = append(errs, t.err)
	}
	return errs
}

// decisive is the error of the host that knows best: the last in the
// configuration, the registry itself.
func (c *chainError) decisive() error {
	return slices.MaxFunc(c.tries, func(a, b hostError) int {
		return slices.Index(c.remote.hosts, a.host) - slices.Index(c.remote.hosts, b.host)
	}).err
}

// onlyMirrors reports whether a mirror answered that it has no such thing, and the
// registry itself did not answer: as on a node that is to reach its mirrors only.
func (c *chainError) onlyMirrors() bool {
	last := c.decisive()
	_, answered := errors.AsType[*statusError](last)
	_, denied := errors.AsType[*deniedError](last)
	if answered || denied || errkind.Of(last) != errkind.Other {
		return false
	}
	return slices.ContainsFunc(c.tries, func(t hostError) bool {
		status, answered := errors.AsType[*statusError](t.err)
		return answered && status.code == http.StatusNotFound
	})
}

// retryAfter is the shortest time that one of the hosts asks to wait for.
func (c *chainError) retryAfter() (shortest time.Duration) {
	for _, t := range c.tries {
		status, ok := errors.AsType[*statusError](t.err)
		if !ok || status.retryAfter == 0 {
			continue
		}
		if shortest == 0 || status.retryAfter < shortest {
			shortest = status.retryAfter
		}
	}
	return shortest
}

// transient reports whether asking again may help.
func (r *remote) transient(err error) bool {
	if chain, ok := errors.AsType[*chainError](err); ok {
		err = chain.decisive()
	}
	if stalled, ok := errors.AsType[*stalledError](err); ok {
		return r.hasOther(stalled.desc)
	}
	if status, ok := errors.AsType[*statusError](err); ok {
		return status.transient()
	}
	_, denied := errors.AsType[*deniedError](err)
	_, cert := errors.AsType[*tls.CertificateVerificationError](err)
	_, alert := errors.AsType[tls.AlertError](err)
	_, noTLS := errors.AsType[tls.RecordHeaderError](err)
	dns, named := errors.AsType[*net.DNSError](err)
	_, silent := errors.AsType[*silentError](err)
	return !denied && !cert && !alert && !noTLS && !silent && !(named && dns.IsNotFound) &&
		!errors.Is(err, context.Canceled) && errkind.Of(err) == errkind.Other
}

// mirrorsOnlyError: a mirror has no such thing, and the registry cannot be reached.
type mirrorsOnlyError struct{ name, hosts string }

func (e *mirrorsOnlyError) Error() string {
	return fmt.Sprintf("image %s: not found at a mirror, and the registry cannot be reached: %s", e.name, e.hosts)
}

// certain makes err, of explain, one of the registry where a mirror's word does not
// do: what the mirror does not have the registry may have.
func certain(err error) error {
	if e, ok := errors.AsType[*mirrorsOnlyError](err); ok {
		return errkind.Errorf(errkind.Unavailable, registryUnavailable+"image %s: %s", e.name, e.hosts)
	}
	return err
}

// explain says what an error of this file's methods means. what is the part of the
// image that was asked for, "" for its manifest.
func (r *remote) explain(ctx context.Context, what string, err error) error {
	return &namedError{r.named(ctx, what, err)}
}

func (r *remote) named(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("pull %s: %w", r.ref, context.Cause(ctx))
	}
	name := r.ref.String()
	if what != "" {
		name += " (" + what + ")"
	}
	cause := err
	if chain, ok := errors.AsType[*chainError](err); ok {
		cause = chain.decisive()
		if chain.onlyMirrors() {
			return errkind.New(errkind.NotFound, &mirrorsOnlyError{name: name, hosts: withoutSecrets(err)})
		}
	}
	text := withoutSecrets(err)
	_, denied := errors.AsType[*deniedError](cause)
	if kind := errkind.Of(cause); !denied && kind != errkind.Other && kind != errkind.Timeout && kind != errkind.Unavailable {
		return errkind.Errorf(kind, "image %s: %s", name, text)
	}
	status, answered := errors.AsType[*statusError](cause)
	switch {
	case denied, answered && (status.code == http.StatusUnauthorized || status.code == http.StatusForbidden):
		return errkind.Errorf(errkind.Other, "pull access to %s denied: it does not exist, or other credentials are needed%s: %s", name, r.creds.hint(), text)
	case answered && status.code == http.StatusNotFound:
		return errkind.Errorf(errkind.NotFound, "image %s: not found in the registry: %s", name, text)
	case answered && status.code == http.StatusTooManyRequests:
		wait := ""
		if status.retryAfter > 0 {
			wait = fmt.Sprintf(", in %v", status.retryAfter)
		}
		return errkind.Errorf(errkind.Unavailable, "image %s: the registry limits how often it is asked, try later%s, or with credentials: %s", name, wait, text)
	case answered && !status.transient():
		return errkind.Errorf(errkind.Other, "image %s: %s", name, text)
	}
	return errkind.Errorf(errkind.Unavailable, registryUnavailable+"image %s: %s", name, text)
}

// plainError is the cause of an error of net/http, whose text has the whole URL.
func plainError(err error) error {
	if u, ok := err.(*url.Error); ok { //nolint:errorlint // only the outermost
		return u.Err
	}
	return err
}

// registryMessage is what the registry says in its answer, as one line.
func registryMessage(body []byte) string {
	const limit = 300
	text := strings.Join(strings.Fields(strings.ToValidUTF8(string(body[:min(len(body), limit)]), "?")), " ")
	if text == "" || strings.HasPrefix(text, "<") { // a page for people
		return ""
	}
	return withoutSecrets(errors.New(text))
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
