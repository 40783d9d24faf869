package image

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Chain says who is asked for an image, and how.
type Chain struct {
	Image       string      `json:"image"`                 // canonical name
	HostsFile   string      `json:"hostsFile,omitempty"`   // or the folder of certificates; "" when there is neither
	Searched    []string    `json:"searched"`              // folders in which it was looked for, in order
	UnknownKeys []string    `json:"unknownKeys,omitempty"` // of the file, which have no effect
	Credentials []string    `json:"credentialsSentTo"`     // hosts that get what kubelet gives with a pull
	Hosts       []ChainHost `json:"hosts"`                 // in the order in which they are asked
}

// ChainHost is one host of a Chain.
type ChainHost struct {
	Repository   string   `json:"repository"`   // URL below which manifests/ and blobs/ are
	Registry     bool     `json:"registry"`     // the registry itself; otherwise a mirror
	Capabilities []string `json:"capabilities"` // "pull" (content by digest), "resolve" (tags), "referrers"
	Proxy        string   `json:"proxy,omitempty"`
	PlainHTTP    bool     `json:"plainHTTP"`             // if it speaks no TLS, where allowed
	SkipVerify   bool     `json:"skipVerify"`            // anybody can pretend to be it
	CA           []string `json:"ca,omitempty"`          // files, beside the system's
	ClientCert   []string `json:"clientCert,omitempty"`  // files
	Headers      []string `json:"headers,omitempty"`     // names; what they hold may be secret
	DialTimeout  string   `json:"dialTimeout,omitempty"` // as in the file
	Answer       string   `json:"answer,omitempty"`      // of its /v2/, with check
	TokenServer  string   `json:"tokenServer,omitempty"` // that the answer names
	Answered     bool     `json:"answered,omitempty"`    // as a registry does
	Took         string   `json:"answeredIn,omitempty"`  // a duration
	Unusable     string   `json:"neverAsked,omitempty"`  // why
}

// Explain says who is asked for an image, by the same code that asks them. With
// checkFor above 0 each is asked whether it is there, without credentials, for so
// long at most.
func Explain(ctx context.Context, name string, dirs []string, checkFor time.Duration) (*Chain, error) {
	ref, err := ParseReference(name)
	if err != nil {
		return nil, err
	}
	dir, hosts, err := hostsOf(ctx, dirs, ref.Host)
	if err != nil {
		return nil, err
	}
	c := &Chain{Image: ref.String(), Searched: dirs, Credentials: []string{}}
	var doc hostsDoc
	if dir != "" {
		c.HostsFile = dir
		if data, err := os.ReadFile(filepath.Join(dir, hostsFile)); err == nil {
			c.HostsFile = filepath.Join(dir, hostsFile)
			doc, c.UnknownKeys = readHostsDoc(data)
		}
	}
	c.Hosts = make([]ChainHost, len(hosts))
	var checks sync.WaitGroup
	for i, e := range hosts {
		c.Hosts[i] = describe(e, ref, doc.find(e))
		if e.own && e.canPull {
			c.Credentials = append(c.Credentials, e.String())
		}
		if checkFor > 0 && e.canPull {
			checks.Go(func() { c.Hosts[i].check(ctx, e, checkFor) })
		}
	}
	checks.Wait()
	closeIdle(hosts)
	return c, nil
}

func describe(e *endpoint, ref Reference, doc hostDoc) ChainHost {
	h := ChainHost{
		Repository: (&url.URL{Scheme: e.scheme, Host: e.host}).JoinPath(e.path, ref.Repo).String(), Registry: e.own,
		Capabilities: []string{}, PlainHTTP: e.fallsBack || e.scheme == "http", SkipVerify: doc.SkipVerify,
		CA: texts(doc.CA), ClientCert: texts(doc.Client), DialTimeout: doc.DialTimeout,
		Headers: slices.Sorted(maps.Keys(e.header)),
	}
	for name, can := range map[string]bool{"pull": e.canPull, "resolve": e.canResolve, "referrers": e.canRefer} {
		if can {
			h.Capabilities = append(h.Capabilities, name)
		}
	}
	slices.Sort(h.Capabilities)
	if !e.canPull {
		h.Unusable = `it has not the capability "pull"`
	}
	if proxy, err := e.proxy(e.url(nil)); err == nil && proxy != nil {
		h.Proxy = proxy.Redacted()
	}
	return h
}

// check asks for /v2/, which a registry answers with 200 or 401 (OCI distribution
// specification, "Determining Support").
func (h *ChainHost) check(ctx context.Context, e *endpoint, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url(nil).JoinPath("/").String(), nil)
	if err != nil {
		h.Answer = withoutSecrets(err)
		return
	}
	for name, values := range e.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	req.Header.Set("User-Agent", userAgent)
	resp, _, err := e.send(ctx, req, nil)
	h.Took = time.Since(began).Round(time.Millisecond).String()
	h.PlainHTTP = h.PlainHTTP && (e.scheme == "http" || e.fellBack.Load())
	switch {
	case err != nil && ctx.Err() != nil:
		h.Answer = fmt.Sprintf("no answer within %v", limit)
		return
	case err != nil:
		h.Answer = withoutSecrets(plainError(err))
		return
	}
	resp.Body.Close()
	h.Answer = resp.Status
	h.Answered = resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusUnauthorized
	for _, wanted := range challengesOf(resp.Header) {
		if realm, err := url.Parse(wanted.realm); err == nil && realm.Host != "" {
			h.TokenServer = originOf(realm)
		}
	}
}

// hostDoc is what hosts.toml says of a host, as far as the client does not tell.
type hostDoc struct {
	Capabilities any    `toml:"capabilities"`
	CA           any    `toml:"ca"`
	Client       any    `toml:"client"`
	SkipVerify   bool   `toml:"skip_verify"`
	Header       any    `toml:"header"`
	OverridePath any    `toml:"override_path"`
	DialTimeout  string `toml:"dial_timeout"`
}

type hostsDoc struct {
	hostDoc
	Server string             `toml:"server"`
	Host   map[string]hostDoc `toml:"host"`
}

// readHostsDoc reads a file that the client has understood. unknown are keys that
// mean nothing to it: often a slip of the pen.
func readHostsDoc(data []byte) (doc hostsDoc, unknown []string) {
	d := toml.NewDecoder(strings.NewReader(string(data))).DisallowUnknownFields()
	var strict *toml.StrictMissingError
	if errors.As(d.Decode(&doc), &strict) {
		for _, e := range strict.Errors {
			unknown = append(unknown, strings.Join(e.Key(), "."))
		}
		_ = toml.Unmarshal(data, &doc)
	}
	return doc, unknown
}

// find is what the file says of e. What has no entry is the registry itself.
func (d *hostsDoc) find(e *endpoint) hostDoc {
	for name, h := range d.Host {
		if !strings.HasPrefix(name, "http") {
			name = "https://" + name
		}
		if u, err := url.Parse(name); err == nil && u.Host == e.host {
			return h
		}
	}
	return d.hostDoc
}

// texts is all texts in value, a text or lists of them.
func texts(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{v}
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, texts(e)...)
		}
		return all
	}
	return nil
}
