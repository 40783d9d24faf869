package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/cridproject/crid/image"
	"github.com/cridproject/crid/internal/errkind"
	"github.com/cridproject/crid/internal/metrics"
)

// The admin socket carries what CRI has no call for: archives of images going in
// and out of the store of a running crid, verification, and how far a pull is. It
// is HTTP on a unix socket that only root may use. Requests for these are POST and end
// with their client. Answers are lines of JSON, adminLine, the last of them with
// Done or Error; only that to export is an archive.

const (
	importPath = "/image/import"
	listPath   = "/image/list"
	checkPath  = "/image/check"
	exportPath = "/image/export"
	pullPath   = "/image/pull"
	verifyPath = "/image/verify"
	adminHost  = "crid" // any name will do on a unix socket

	archiveBytes = "Crid-Archive-Bytes" // header of an export: about how much will come
	exportResult = "Crid-Result"        // trailer of an export: an adminLine, escaped
	stepsEvery   = 200 * time.Millisecond
)

func adminPath(c Config) string { return filepath.Join(c.State, "admin.sock") }

// adminStore is what the admin socket needs of image.Store.
type adminStore interface {
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) ([]image.Image, error)
	List() []image.Image
	Check(ctx context.Context) []error
	Export(ctx context.Context, w io.Writer, o image.ExportOptions) error
	Pull(ctx context.Context, r image.PullRequest) (image.ID, error)
	Verify(ctx context.Context, refs []string, p *image.Progress, report func(image.Verification)) error
}

// adminLine is one line of an answer.
type adminLine struct {
	Steps    []image.Step `json:"steps,omitempty"` // how far it is
	Verified *verifiedRow `json:"verified,omitempty"`

	Done     bool         `json:"done,omitempty"`
	Images   []imageRow   `json:"images,omitzero"`
	ID       string       `json:"id,omitempty"`
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

// last is the line that ends an answer.
func last(l adminLine, err error) adminLine {
	if err != nil {
		return adminLine{Error: err.Error(), Kind: errkind.Of(err)}
	}
	l.Done = true
	return l
}

// newAdminServer makes the server of the admin socket. Requests log through
// ctx's logger and end with their client.
func newAdminServer(ctx context.Context, store adminStore, m *metrics.Metrics) *http.Server {
	mux := http.NewServeMux()
	addDebugging(mux, m)
	mux.HandleFunc("POST "+importPath, func(w http.ResponseWriter, r *http.Request) {
		answer(w, func(p *image.Progress, _ func(adminLine)) (adminLine, error) {
			images, err := store.Import(r.Context(), r.Body, image.ImportOptions{Name: r.URL.Query().Get("name"), Progress: p})
			return adminLine{Images: imageRows(images)}, err
		})
	})
	mux.HandleFunc("POST "+listPath, func(w http.ResponseWriter, _ *http.Request) {
		answer(w, func(*image.Progress, func(adminLine)) (adminLine, error) {
			return adminLine{Images: imageRows(store.List())}, nil
		})
	})
	mux.HandleFunc("POST "+checkPath, func(w http.ResponseWriter, r *http.Request) {
		answer(w, func(*image.Progress, func(adminLine)) (adminLine, error) {
			return adminLine{Problems: texts(store.Check(r.Context()))}, nil
		})
	})
	mux.HandleFunc("POST "+pullPath, func(w http.ResponseWriter, r *http.Request) {
		answer(w, func(p *image.Progress, _ func(adminLine)) (adminLine, error) {
			id, err := store.Pull(r.Context(), image.PullRequest{Ref: r.URL.Query().Get("name"), Progress: p})
			return adminLine{ID: string(id)}, err
		})
	})
	mux.HandleFunc("POST "+verifyPath, func(w http.ResponseWriter, r *http.Request) {
		answer(w, func(p *image.Progress, say func(adminLine)) (adminLine, error) {
			return adminLine{}, store.Verify(r.Context(), r.URL.Query()["image"], p, func(v image.Verification) {
				say(adminLine{Verified: newVerifiedRow(v)})
			})
		})
	})
	mux.HandleFunc("POST "+exportPath, func(w http.ResponseWriter, r *http.Request) { serveExport(w, r, store) })
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: requestTimeout, // the body may take as long as its archive does
		BaseContext:       func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ErrorLog:          klog.NewStandardLogger("WARNING"),
	}
}

// answer runs do and says meanwhile how far it is. Errors of writing are the
// client's going away, which ends the request's context.
func answer(w http.ResponseWriter, do func(p *image.Progress, say func(adminLine)) (adminLine, error)) {
	w.Header().Set("Content-Type", "application/jsonl")
	var mu sync.Mutex
	lines := json.NewEncoder(w)
	say := func(l adminLine) {
		mu.Lock()
		defer mu.Unlock()
		_ = lines.Encode(l)
		_ = http.NewResponseController(w).Flush()
	}
	p := &image.Progress{}
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(stepsEvery)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				// Before that a request's body may still be coming.
				if steps := p.Steps(); len(steps) > 0 {
					say(adminLine{Steps: steps})
				}
			}
		}
	})
	l, err := do(p, say)
	close(done)
	telling.Wait()
	say(last(l, err))
}

// serveExport answers with an archive. What goes wrong before its first byte is
// told as in other answers, what goes wrong later in a trailer.
func serveExport(w http.ResponseWriter, r *http.Request, store adminStore) {
	query := r.URL.Query()
	p := &image.Progress{}
	out := &lateWriter{w: w, begin: func() {
		total := int64(0)
		for _, s := range p.Steps() {
			total += s.Total
		}
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set("Trailer", exportResult)
		w.Header().Set(archiveBytes, strconv.FormatInt(total, 10))
	}}
	err := store.Export(r.Context(), out, image.ExportOptions{
		Images: query["image"], Format: image.ExportFormat(query.Get("format")), Progress: p,
	})
	if !out.begun {
		answer(w, func(*image.Progress, func(adminLine)) (adminLine, error) { return adminLine{}, err })
		return
	}
	result, err := json.Marshal(last(adminLine{}, err))
	if err == nil {
		w.Header().Set(exportResult, url.QueryEscape(string(result)))
	}
}

// lateWriter calls begin before the first byte.
type lateWriter struct {
	w     io.Writer
	begin func()
	begun bool
}

func (l *lateWriter) Write(p []byte) (int, error) {
	if !l.begun {
		l.begun = true
		l.begin()
	}
	return l.w.Write(p)
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

func (a *adminClient) post(ctx context.Context, path string, query url.Values, body io.Reader) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: adminHost, Path: path, RawQuery: query.Encode()}
	if body != nil {
		body = io.NopCloser(body) // the caller's to close
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), body)
	if err != nil {
		return nil, err
	}
	resp, err := a.http.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // without the made-up address
		}
		return nil, fmt.Errorf("send request to crid: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1000))
		return nil, fmt.Errorf("crid answers %s: %s", resp.Status, text)
	}
	return resp, nil
}

// call makes a request, passes each line of the answer to each, and returns the
// last one.
func (a *adminClient) call(ctx context.Context, path string, query url.Values, body io.Reader, each func(adminLine)) (adminLine, error) {
	resp, err := a.post(ctx, path, query, body)
	if err != nil {
		return adminLine{}, err
	}
	defer resp.Body.Close()
	return readLines(resp.Body, each)
}

// listImages asks for more than CRI's list has.
func (a *adminClient) listImages(ctx context.Context) ([]imageRow, error) {
	l, err := a.call(ctx, listPath, nil, nil, func(adminLine) {})
	return l.Images, err
}

// checkImages returns what is wrong with the image store.
func (a *adminClient) checkImages(ctx context.Context) ([]string, error) {
	l, err := a.call(ctx, checkPath, nil, nil, func(adminLine) {})
	return l.Problems, err
}

func readLines(r io.Reader, each func(adminLine)) (adminLine, error) {
	for d := json.NewDecoder(r); ; {
		var l adminLine
		if err := d.Decode(&l); err != nil {
			return l, fmt.Errorf("crid's answer broke off; has it ended? Its log says why: %w", err)
		}
		if err := l.err(); err != nil || l.Done {
			return l, err
		}
		each(l)
	}
}

func (l adminLine) err() error {
	if l.Error == "" {
		return nil
	}
	return errkind.New(l.Kind, errors.New(l.Error))
}

// export copies an archive of images to w. total is told how long it is about to
// be, once that is known.
func (a *adminClient) export(ctx context.Context, w io.Writer, query url.Values, total func(int64)) error {
	resp, err := a.post(ctx, exportPath, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	size := resp.Header.Get(archiveBytes)
	if size == "" {
		_, err := readLines(resp.Body, func(adminLine) {})
		return err
	}
	if n, err := strconv.ParseInt(size, 10, 64); err == nil {
		total(n)
	}
	if _, err := io.CopyBuffer(w, resp.Body, make([]byte, 256<<10)); err != nil {
		return err
	}
	text, err := url.QueryUnescape(resp.Trailer.Get(exportResult))
	if err != nil {
		return fmt.Errorf("read crid's answer: %w", err)
	}
	var l adminLine
	if err := json.Unmarshal([]byte(text), &l); err != nil {
		return fmt.Errorf("read crid's answer: %w", err)
	}
	return l.err()
}
