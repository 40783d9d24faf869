package image

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// A token without a lifetime has this one (Docker's token authentication
	// specification), and each is renewed a moment before its end.
	tokenLife   = time.Minute
	tokenMargin = 5 * time.Second
	maxToken    = 1 << 20 // bytes of a token server's answer
)

// deniedError means that other credentials are needed.
type deniedError struct{ err error }

func (e *deniedError) Error() string { return e.err.Error() }
func (e *deniedError) Unwrap() error { return e.err }

// authorizer identifies one pull at all servers that it gets to do with: with its
// credentials at the registry itself, anonymously elsewhere.
type authorizer struct {
	creds credentials
	repo  string

	mu       sync.Mutex
	sessions map[string]*session // by origin; +checklocks:mu
}

func newAuthorizer(c credentials, repo string) *authorizer {
	return &authorizer{creds: c, repo: repo, sessions: make(map[string]*session)}
}

// session is what one origin has asked for and got.
type session struct {
	// turn holds one thing; who has taken it may use the rest. A mutex could not be
	// waited for with a context, and a token may take long to come.
	turn chan struct{}

	wanted challenge
	header string    // "" means that it has not asked for anything
	until  time.Time // when header ends; zero means never
}

func (a *authorizer) session(at *url.URL) *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := originOf(at)
	s := a.sessions[key]
	if s == nil {
		s = &session{turn: make(chan struct{}, 1)}
		s.turn <- struct{}{}
		a.sessions[key] = s
	}
	return s
}

// take waits for the session's turn. give ends it.
func (s *session) take(ctx context.Context) error {
	select {
	case <-s.turn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *session) give() { s.turn <- struct{}{} }

// credsFor is what may be sent to an origin that a request to e has led to.
func (a *authorizer) credsFor(e *endpoint, at *url.URL) credentials {
	if e.own && originOf(at) == originOf(e.url(nil)) {
		return a.creds
	}
	return credentials{}
}

// header is what to send in "Authorization", "" for nothing. A token that has
// ended, or is about to, is renewed.
func (a *authorizer) header(ctx context.Context, e *endpoint, at *url.URL) (string, error) {
	c := a.credsFor(e, at)
	if c.token != "" {
		return "Bearer " + c.token, nil
	}
	s := a.session(at)
	if err := s.take(ctx); err != nil {
		return "", err
	}
	defer s.give()
	if s.header != "" && !s.until.IsZero() && time.Now().After(s.until) {
		if err := a.renew(ctx, e, at, s); err != nil {
			return "", err
		}
	}
	return s.header, nil
}

// challenged is for an answer 401 of at to a request with the header sent. It
// returns nil when there is now another header to try. denied is the answer, as
// the error if there is none.
func (a *authorizer) challenged(ctx context.Context, e *endpoint, at *url.URL, h http.Header, sent string, denied error) error {
	c := a.credsFor(e, at)
	if c.token != "" {
		return &deniedError{denied} // there is no other token
	}
	s := a.session(at)
	if err := s.take(ctx); err != nil {
		return err
	}
	defer s.give()
	if s.header != sent {
		return nil // another request has been faster
	}
	all := challengesOf(h)
	if len(all) == 0 {
		all = []challenge{{basic: true}} // some do not say what they want
	}
	for _, wanted := range all {
		if wanted.basic && c.user == "" {
			continue // an identity token is no password
		}
		s.wanted = wanted
		return a.renew(ctx, e, at, s)
	}
	return &deniedError{denied}
}

// renew gets the header that the session's challenge asks for. The caller has the
// session's turn.
func (a *authorizer) renew(ctx context.Context, e *endpoint, at *url.URL, s *session) error {
	c := a.credsFor(e, at)
	s.header, s.until = "", time.Time{}
	if s.wanted.basic {
		s.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(c.user+":"+c.secret))
		return nil
	}
	token, life, err := a.fetchToken(ctx, e, at, s.wanted, c)
	if err != nil {
		return err
	}
	s.header, s.until = "Bearer "+token, time.Now().Add(max(life-tokenMargin, life/2))
	return nil
}

// fetchToken asks the token server that the registry names. Name and password go
// in the request's header, as Docker sends them; an identity token is exchanged
// by POST (Docker's token authentication and OAuth 2 specifications).
func (a *authorizer) fetchToken(ctx context.Context, e *endpoint, at *url.URL, wanted challenge, c credentials) (token string, life time.Duration, err error) {
	realm, err := url.Parse(wanted.realm)
	if err != nil || realm.Host == "" || realm.Scheme != "http" && realm.Scheme != "https" {
		return "", 0, errors.New("the registry names no token server that could be asked")
	}
	realm.User, realm.Fragment = nil, ""
	if c != (credentials{}) && at.Scheme == "https" && !e.fellBack.Load() && realm.Scheme != "https" {
		return "", 0, &deniedError{fmt.Errorf("token server %s is not encrypted, while the registry is: no credentials are sent there", originOf(realm))}
	}
	req, err := a.tokenRequest(ctx, realm, wanted, c)
	if err != nil {
		return "", 0, err
	}
	resp, answeredBy, err := e.send(ctx, req, nil)
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", originOf(realm), err)
	}
	if resp.StatusCode != http.StatusOK {
		err := newStatusError(resp, answeredBy)
		switch err.code {
		case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden:
			return "", 0, &deniedError{fmt.Errorf("token server %s: %w", originOf(realm), err)}
		}
		return "", 0, fmt.Errorf("token server %s: %w", originOf(realm), err)
	}
	defer resp.Body.Close()
	var t struct {
		Token       string  `json:"token"`
		AccessToken string  `json:"access_token"`
		ExpiresIn   float64 `json:"expires_in"` // seconds
	}
	body, err := readSmall(resp, maxToken)
	if err != nil {
		return "", 0, fmt.Errorf("token server %s: %w", originOf(realm), err)
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return "", 0, fmt.Errorf("token server %s: its answer is no JSON object with a token", originOf(realm))
	}
	token = t.Token
	if token == "" {
		token = t.AccessToken
	}
	if token == "" || strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }) {
		return "", 0, fmt.Errorf("token server %s: its answer has no token", originOf(realm))
	}
	life = tokenLife
	if t.ExpiresIn >= 1 {
		life = time.Duration(min(t.ExpiresIn, (24*time.Hour).Seconds())) * time.Second
	}
	return token, life, nil
}

func (a *authorizer) tokenRequest(ctx context.Context, realm *url.URL, wanted challenge, c credentials) (*http.Request, error) {
	scopes := slices.Clone(wanted.scopes)
	if own := "repository:" + a.repo + ":pull"; !slices.Contains(scopes, own) {
		scopes = append(scopes, own)
	}
	form := url.Values{"service": {wanted.service}}
	if c.user == "" && c.secret != "" {
		form.Set("grant_type", "refresh_token")
		form.Set("refresh_token", c.secret)
		form.Set("client_id", userAgent)
		form.Set("scope", strings.Join(scopes, " "))
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
			req.Header.Set("User-Agent", userAgent)
		}
		return req, err
	}
	query := realm.Query()
	query.Set("service", wanted.service)
	query["scope"] = scopes
	realm.RawQuery = query.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", userAgent)
	if c.user != "" {
		req.SetBasicAuth(c.user, c.secret)
	}
	return req, nil
}
