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
	adminHost  = "crid" // any name will do on a unix socket
)

func adminPath(c Config) string { return filepath.Join(c.State, "admin.sock") }

// importer is what the admin socket needs of image.Store.
type importer interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error)
}

// newAdminServer makes the server of the admin socket. Requests log through
// ctx's logger and end with their client.
func newAdminServer(ctx context.Context, store importer) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+importPath, func(w http.ResponseWriter, r *http.Request) {
		images, err := store.Import(r.Context(), r.Body, image.ImportOptions{Name: r.URL.Query().Get("name")})
		reply(w, imageRows(images), err)
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
	Images []imageRow   `json:"images,omitempty"`
	Error  string       `json:"error,omitempty"`
	Kind   errkind.Kind `json:"kind,omitempty"`
}

func reply(w http.ResponseWriter, images []imageRow, err error) {
	w.Header().Set("Content-Type", "application/json")
	body := adminReply{Images: images}
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
	u := url.URL{Scheme: "http", Host: adminHost, Path: importPath, RawQuery: url.Values{"name": {name}}.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), io.NopCloser(archive))
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // without the made-up address
		}
		return nil, fmt.Errorf("send archive to crid: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read crid's answer: %w", err)
	}
	var body adminReply
	if err := json.Unmarshal(data, &body); err != nil {
		return nil, fmt.Errorf("crid answers %s: %s", resp.Status, bytes.TrimSpace(data))
	}
	if body.Error != "" {
		return nil, errkind.New(body.Kind, errors.New(body.Error))
	}
	return body.Images, nil
}
