package image

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// Auth is what a client gives to pull with. At most one way of it is used: the
// registry token, else the identity token, else name and password.
type Auth struct {
	Username      string
	Password      string
	Auth          string // base64 of "name:password"
	ServerAddress string // the registry it is for; "" means the image's
	IdentityToken string // exchanged for a token at the registry's token server
	RegistryToken string // sent as it is
}

// String shows that there is something, not what.
func (a Auth) String() string { return "[credentials for " + a.ServerAddress + "]" }

// GoString is String, for %#v.
func (a Auth) GoString() string { return a.String() }

// credentials are those of an Auth that apply to one registry.
type credentials struct {
	user, secret string // user "" and a secret: an identity token
	token        string // registry token
	// unused is the registry that the given ones are for, when that is another.
	unused string
}

// String keeps credentials from being printed by accident.
func (credentials) String() string { return "[credentials]" }

// GoString is String, for %#v.
func (c credentials) GoString() string { return c.String() }

var harmlessUser = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._@+-]{0,30}$`)

// at says as whom a host is asked, without secrets.
func (c credentials) at(e *endpoint) string {
	switch {
	case !e.own:
	case c.token != "":
		return "with a registry token"
	case c.user != "" && harmlessUser.MatchString(c.user):
		return "as user " + c.user
	case c.user != "":
		return "as the user given" // some put a token there
	case c.secret != "":
		return "with an identity token"
	}
	return "anonymously"
}

// hint says why credentials that a client gave have not been used.
func (c credentials) hint() string {
	if c.unused == "" {
		return ""
	}
	return fmt.Sprintf(" (those given are for %s)", c.unused)
}

// credentialsFor picks what a has for the registry host. Credentials that are for
// another registry are not used.
func credentialsFor(a *Auth, host string) (credentials, error) {
	if a == nil {
		return credentials{}, nil
	}
	if a.ServerAddress != "" && !sameRegistry(a.ServerAddress, host) {
		return credentials{unused: shorten(withoutSecrets(errors.New(a.ServerAddress)))}, nil
	}
	switch {
	case a.RegistryToken != "":
		return credentials{token: a.RegistryToken}, nil
	case a.IdentityToken != "":
		return credentials{secret: a.IdentityToken}, nil
	case a.Username != "" || a.Password != "":
		return credentials{user: a.Username, secret: a.Password}, nil
	case a.Auth != "":
		plain, err := base64.StdEncoding.DecodeString(a.Auth)
		if err != nil {
			// The cause quotes nothing of the secret, but its place tells of it.
			return credentials{}, errkind.Errorf(errkind.Invalid, "auth: not base64")
		}
		user, secret, ok := strings.Cut(string(plain), ":")
		if !ok {
			return credentials{}, errkind.Errorf(errkind.Invalid, `auth: not "name:password" in base64`)
		}
		return credentials{user: user, secret: strings.TrimRight(secret, "\x00")}, nil
	}
	return credentials{}, nil
}

// key tells whether two pulls have the same credentials, without keeping them.
func (c credentials) key() digest.Digest {
	h := sha256.New()
	for _, s := range []string{c.user, c.secret, c.token} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return digest.NewDigest(digest.SHA256, h)
}

// sameRegistry reports whether an address as Docker's configuration files have it
// (with or without scheme, port and path, or with "*" for a label) is that of the
// registry host.
func sameRegistry(address, host string) bool {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return false
	}
	if hubName(u.Host) == hubName(host) {
		return true
	}
	pattern := strings.Split(hubName(u.Host), ".")
	labels := strings.Split(hubName(host), ".")
	if len(pattern) != len(labels) {
		return false
	}
	for i := range labels {
		if ok, err := path.Match(pattern[i], labels[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// hubName is a registry's host in lower case and without a port that is understood,
// and Docker Hub's names folded into one.
func hubName(host string) string {
	host = strings.TrimSuffix(strings.ToLower(host), ":443")
	switch host {
	case "index.docker.io", "registry-1.docker.io":
		return "docker.io"
	}
	return host
}
