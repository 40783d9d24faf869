package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
)

// The admin socket carries what CRI has no call for: importing images into the
// store of a running crid. It is HTTP, so that an archive is streamed, on a unix
// socket that only root may use.

const (
	importPath = "/image/import"
	listPath   = "/image/list"
	checkPath  = "/image/check"
	adminHost  = "crid" // any name will do on a unix socket
)

func adminPath(c Config) string { return filepath.Join(c.State, "admin.sock") }

// imageStore is what the admin socket needs of image.Store.
type imageStore interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error)
	List() []image.Image
	Check(ctx context.Context) []error
}

// newAdminServer makes the server of the admin socket. Requests log through
// ctx's logger and end with their client.
func newAdminServer(ctx context.Context, store imageStore) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+importPath, func(w http.ResponseWriter, r *http.Request) {
		images, err := store.Import(r.Context(), r.Body, image.ImportOptions{Name: r.URL.Query().Get("name")})
		reply(w, adminReply{Images: imageRows(images)}, err)
	})
	mux.HandleFunc("GET "+listPath, func(w http.ResponseWriter, _ *http.Request) {
		reply(w, adminReply{Images: imageRows(store.List())}, nil)
	})
	mux.HandleFunc("GET "+checkPath, func(w http.ResponseWriter, r *http.Request) {
		reply(w, adminReply{Problems: texts(store.Check(r.Context()))}, nil)
	})
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second, // the body may take as long as its archive does
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:          klog.NewStandardLogger("WARNING"),
	}
}

// adminReply is the body of every answer.
type adminReply struct {
	Images   []imageRow   `json:"images,omitempty"`
	Problems []string     `json:"problems,omitempty"`
	Error    string       `json:"error,omitempty"`
	Kind     errkind.Kind `json:"kind,omitempty"`
}

func texts(errs []error) []string {
	all := make([]string, 0, len(errs))
	for _, err := range errs {
		all = append(all, err.Error())
	}
	return all
}

func reply(w http.ResponseWriter, body adminReply, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(http.StatusUnprocessableEntity)
		body = adminReply{Error: err.Error(), Kind: errkind.Of(err)}
	}
	_ = json.NewEncoder(w).Encode(body) // an error is the client's going away
}

// adminClient speaks to a running crid.
type adminClient struct{ http http.Client }

func newAdminClient(path string) *adminClient {
	return &adminClient{http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// importImages streams an archive to the daemon.
func (a *adminClient) importImages(ctx context.Context, name string, archive io.Reader) ([]imageRow, error) {
	body, err := a.call(ctx, http.MethodPost, importPath, url.Values{"name": {name}}, io.NopCloser(archive))
	if err != nil {
		return nil, fmt.Errorf("send archive to crid: %w", err)
	}
	return body.Images, body.err()
}

// listImages asks for more than CRI's list has.
func (a *adminClient) listImages(ctx context.Context) ([]imageRow, error) {
	body, err := a.call(ctx, http.MethodGet, listPath, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("ask crid for its images: %w", err)
	}
	return body.Images, body.err()
}

// checkImages returns what is wrong with the image store.
func (a *adminClient) checkImages(ctx context.Context) ([]string, error) {
	body, err := a.call(ctx, http.MethodGet, checkPath, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("ask crid about its images: %w", err)
	}
	return body.Problems, body.err()
}

func (b *adminReply) err() error {
	if b.Error == "" {
		return nil
	}
	return errkind.New(b.Kind, errors.New(b.Error))
}

func (a *adminClient) call(ctx context.Context, method, path string, query url.Values, body io.Reader) (*adminReply, error) {
	u := url.URL{Scheme: "http", Host: adminHost, Path: path, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // without the made-up address
		}
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	var answer adminReply
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("it answers %s: %s", resp.Status, bytes.TrimSpace(data))
	}
	return &answer, nil
}
