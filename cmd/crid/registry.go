package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cridproject/crid/image"
)

// registryCheckTimeout is how long a host may take to answer `crid registry explain`.
const registryCheckTimeout = 10 * time.Second

// registryCommand checks the arguments of `crid registry`.
func (p program) registryCommand(args []string) (action, error) {
	if err := flagsFirst("registry", args); err != nil {
		return nil, err
	}
	if len(args) == 0 || args[0] != "explain" {
		return nil, usagef("`crid registry` takes \"explain\", not %q", strings.Join(args, " "))
	}
	flags := newFlags("crid registry explain")
	asJSON := flags.Bool("json", false, "")
	offline := flags.Bool("offline", false, "")
	rest, err := parseAnywhere(flags, args[1:])
	if err != nil {
		return nil, err
	}
	if len(rest) != 1 {
		return nil, usagef("`crid registry explain` takes one image name, but was given %d arguments", len(rest))
	}
	return configured(func(ctx context.Context, c Config) error {
		limit := registryCheckTimeout
		if *offline {
			limit = 0
		}
		chain, err := image.Explain(ctx, rest[0], c.Registry.ConfigDirs, limit)
		if err != nil {
			return err
		}
		if *asJSON {
			e := json.NewEncoder(p.out)
			e.SetIndent("", "  ")
			err = e.Encode(chain)
		} else {
			err = printChain(p.out, chain)
		}
		if err == nil && limit > 0 && !anyAnswered(chain) {
			err = errors.New("none of the hosts answers as a registry does")
		}
		return err
	}), nil
}

func anyAnswered(c *image.Chain) bool {
	for _, h := range c.Hosts {
		if h.Answered {
			return true
		}
	}
	return false
}

// printChain prints who is asked, in order, for people.
func printChain(out io.Writer, c *image.Chain) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "image\t%s\n", c.Image)
	file := c.HostsFile
	if file == "" {
		file = "none in " + strings.Join(c.Searched, ", ")
	}
	fmt.Fprintf(w, "configuration\t%s\n", file)
	for _, k := range c.UnknownKeys {
		fmt.Fprintf(w, "\tunknown key %s: it has no effect\n", k)
	}
	to := strings.Join(c.Credentials, ", ") + " only, and to the token server that it names"
	if len(c.Credentials) == 0 {
		to = "nobody: no host below is the registry itself"
	}
	fmt.Fprintf(w, "credentials\tcome from kubelet with each pull, and are sent to %s\n", to)
	for n, h := range c.Hosts {
		what := "mirror"
		if h.Registry {
			what = "the registry itself"
		}
		fmt.Fprintf(w, "\n%d. %s (%s)\n", n+1, h.Repository, what)
		for _, row := range chainRows(h) {
			fmt.Fprintf(w, "   %s\t%s\n", row[0], row[1])
		}
	}
	return w.Flush()
}

// chainRows is what there is to say of one host.
func chainRows(h image.ChainHost) (rows [][2]string) {
	add := func(key, value string) {
		if value != "" {
			rows = append(rows, [2]string{key, value})
		}
	}
	if h.Unusable != "" {
		add("never asked", h.Unusable)
	}
	add("capabilities", strings.Join(h.Capabilities, ", "))
	var tls []string
	switch {
	case h.PlainHTTP && strings.HasPrefix(h.Repository, "https:"):
		tls = append(tls, "plain HTTP if it speaks no TLS")
	case h.PlainHTTP:
		tls = append(tls, "none, plain HTTP")
	}
	if h.SkipVerify {
		tls = append(tls, "its certificate is not verified")
	}
	if len(h.CA) > 0 {
		tls = append(tls, "CA "+strings.Join(h.CA, ", "))
	}
	if len(h.ClientCert) > 0 {
		tls = append(tls, "client certificate "+strings.Join(h.ClientCert, ", "))
	}
	add("TLS", strings.Join(tls, "; "))
	add("headers", strings.Join(h.Headers, ", "))
	add("dial timeout", h.DialTimeout)
	add("proxy", h.Proxy)
	if h.Answer != "" {
		add("answer", fmt.Sprintf("%s, after %s", h.Answer, h.Took))
	}
	add("token server", h.TokenServer)
	return rows
}
