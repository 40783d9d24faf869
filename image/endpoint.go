package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"k8s.io/klog/v2"
)

// endpoint is one host that is asked for the images of a registry: the registry
// itself, or a mirror of it.
type endpoint struct {
	scheme, host, path string      // "https", "registry.example:5000", "/v2"
	header             http.Header // sent with each request, from hosts.toml; may hold secrets
	client             *http.Client
	transports         []*http.Transport
	proxy              func(*url.URL) (*url.URL, error)

	canPull, canResolve, canRefer bool
	own                           bool // it is the registry itself: it may get the credentials
	fallsBack                     bool // to plain HTTP where no TLS is spoken
	fellBack                      atomic.Bool
	namespace                     string        // the registry's name, told to a mirror; "" for the registry itself
	silence                       time.Duration // until an answer begins; 0 or less means no limit
}

// String is the host as people read it in an error.
func (e *endpoint) String() string {
	if e.fellBack.Load() {
		return "http://" + e.host
	}
	return e.scheme + "://" + e.host
}

// url is the address of one part of the repository.
func (e *endpoint) url(query url.Values, parts ...string) *url.URL {
	u := &url.URL{Scheme: e.scheme, Host: e.host}
	u = u.JoinPath(append([]string{e.path}, parts...)...)
	if e.namespace != "" {
		if query == nil {
			query = url.Values{}
		}
		query.Set("ns", e.namespace)
	}
	u.RawQuery = query.Encode()
	return u
}

// origin is what credentials are bound to: scheme, host and port.
func originOf(u *url.URL) string { return strings.ToLower(u.Scheme + "://" + u.Host) }

// silentError means that the server took the request and did not answer, or did not
// end an answer of a few bytes.
type silentError struct{ after time.Duration }

func (e *silentError) Error() string { return fmt.Sprintf("no answer within %v", e.after) }

// statusError is an answer that is no success.
type statusError struct {
	at         string // scheme and host that answered, which a redirect may have led to
	method     string
	code       int
	message    string        // what the server says, one line without secrets
	retryAfter time.Duration // 0 when the server says nothing of it
}

func (e *statusError) Error() string {
	text := fmt.Sprintf("%d %s", e.code, http.StatusText(e.code))
	if e.message != "" {
		text += ": " + e.message
	}
	return strings.TrimSuffix(text, " ")
}

// transient reports whether the server may answer otherwise soon.
func (e *statusError) transient() bool {
	return e.code >= 500 && e.code != http.StatusNotImplemented && e.code != http.StatusHTTPVersionNotSupported ||
		e.code == http.StatusTooManyRequests || e.code == http.StatusRequestTimeout
}

// newStatusError reads the answer's body and closes it.
func newStatusError(resp *http.Response, at *url.URL) *statusError {
	defer resp.Body.Close()
	body, _ := readSmall(resp, 64<<10)
	return &statusError{
		at: originOf(at), method: resp.Request.Method, code: resp.StatusCode,
		message: registryMessage(body), retryAfter: retryAfter(resp.Header.Get("Retry-After"), time.Now()),
	}
}

// retryAfter reads a number of seconds or a date (RFC 9110, section 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// send makes one request and follows its redirects. header is for the endpoint
// alone, except for what guardHeader leaves; authorize says what to identify with at
// an origin. at is who answered in the end. The caller closes the body.
func (e *endpoint) send(ctx context.Context, req *http.Request, authorize func(context.Context, *url.URL) (string, error)) (resp *http.Response, at *url.URL, err error) {
	began := time.Now()
	ctx, cancel := context.WithCancelCause(ctx)
	if e.silence > 0 {
		t := time.AfterFunc(e.silence, func() { cancel(&silentError{e.silence}) })
		defer t.Stop()
	}
	first := req.URL
	at = first
	client := *e.client
	client.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if len(via) >= 10 {
			return errors.New("stopped after 10 redirects")
		}
		crossed := originOf(next.URL) != originOf(via[0].URL)
		if crossed && next.Method != http.MethodGet && next.Method != http.MethodHead {
			return errors.New("redirect of a token request to another host: refused, it holds credentials")
		}
		if crossed {
			guardHeader(next.Header)
		}
		at = next.URL
		return authorizeRequest(next, authorize)
	}
	req = req.WithContext(ctx)
	if err = authorizeRequest(req, authorize); err == nil {
		resp, err = client.Do(req)
	}
	log := klog.FromContext(ctx).V(4)
	if err != nil {
		if silent, ok := errors.AsType[*silentError](context.Cause(ctx)); ok {
			err = silent
		}
		cancel(nil)
		log.Info("Registry did not answer", "host", e.String(), "method", req.Method, "path", req.URL.Path, "duration", time.Since(began), "err", withoutSecrets(err))
		return nil, at, err
	}
	log.Info("Asked registry", "host", e.String(), "method", req.Method, "path", req.URL.Path, "answeredBy", originOf(at), "status", resp.StatusCode, "duration", time.Since(began))
	if e.fallsBack && at == first && resp.TLS == nil {
		e.fellBack.Store(true)
	}
	resp.Body = &answer{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, silence: e.silence}
	return resp, at, nil
}

// authorizeRequest sets what its origin wants to identify the client by.
func authorizeRequest(req *http.Request, authorize func(context.Context, *url.URL) (string, error)) error {
	if authorize == nil {
		return nil
	}
	value, err := authorize(req.Context(), req.URL)
	if err == nil && value != "" {
		req.Header.Set("Authorization", value)
	}
	return err
}

// guardHeader leaves what another host may see. net/http takes off credentials
// too, but not for another port or a subdomain, and not what hosts.toml adds.
func guardHeader(h http.Header) {
	for name := range h {
		switch name {
		case "Accept", "Accept-Encoding", "Range", "User-Agent":
		default:
			delete(h, name)
		}
	}
}

// answer is the body of an answer. Closing it ends the request; abort does so
// while a Read waits, which then returns the cause.
type answer struct {
	io.ReadCloser
	ctx     context.Context //nolint:containedctx // of this request alone
	cancel  context.CancelCauseFunc
	silence time.Duration // endpoint.silence
}

// readSmall reads the first limit bytes of an answer of endpoint.send that is no blob.
// All of them have the time that the answer had to begin: who only begins one must
// not hold up a pull for ever.
func readSmall(resp *http.Response, limit int64) ([]byte, error) {
	if a, ok := resp.Body.(*answer); ok && a.silence > 0 {
		t := time.AfterFunc(a.silence, func() { a.abort(&silentError{a.silence}) })
		defer t.Stop()
	}
	return io.ReadAll(io.LimitReader(resp.Body, limit))
}

func (a *answer) Read(p []byte) (int, error) {
	n, err := a.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && a.ctx.Err() != nil {
		err = context.Cause(a.ctx)
	}
	return n, err
}

func (a *answer) abort(cause error) { a.cancel(cause) }

func (a *answer) Close() error {
	err := a.ReadCloser.Close()
	a.cancel(nil)
	return err
}
