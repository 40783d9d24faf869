package signature

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/cridproject/crid/internal/errkind"
)

// failed begins the text of errors that mean that an image is refused. kubelet looks
// for it at the very beginning.
const failed = "SignatureValidationFailed: "

const (
	verifyLimit = time.Minute // of one run of crid-verify, which takes far less
	maxRuns     = 2           // of crid-verify at one time
	maxReasons  = 5           // that a message lists
)

// Options are those of New.
type Options struct {
	PolicyFile string // absolute; required
	Program    string // crid-verify; required
}

// Checker applies a policy file. It may be used concurrently. A nil one accepts
// every image.
type Checker struct {
	file, program string
	running       chan struct{} // as many as may run
}

// New reads the policy file, so that what is wrong with it or with the keys it names
// is found at once. It is read again for each image. Invalid: what is wrong, with file
// and place.
func New(o Options) (*Checker, error) {
	p, err := load(o.PolicyFile)
	if err != nil {
		return nil, errkind.New(errkind.Invalid, err)
	}
	if p.asksForSignatures() {
		if _, err := exec.LookPath(o.Program); err != nil {
			return nil, errkind.Errorf(errkind.Invalid, "signature policy %s asks for signatures, and the program that verifies them is missing: %w; install crid-verify beside crid", o.PolicyFile, err)
		}
	}
	return &Checker{file: o.PolicyFile, program: o.Program, running: make(chan struct{}, maxRuns)}, nil
}

// Rule is what the policy asks of one image. A nil one asks for nothing.
type Rule struct {
	checker  *Checker
	image    string
	ref      reference.Named
	where    string // the file; "" while it has not been read
	requires []requirement
}

// ForImage reads the policy and finds the rule for an image of a registry, by its
// full name. A file that cannot be read or is wrong refuses every image, and
// "reject" this one: the error has kind BadState and begins with
// "SignatureValidationFailed: ".
func (c *Checker) ForImage(name string) (*Rule, error) {
	if c == nil {
		return nil, nil
	}
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, errkind.Errorf(errkind.Invalid, "image name %q: %w", shorten(name), err)
	}
	return c.rule(Docker, name, ref)
}

// ForArchive is whether an archive may be imported: what the policy says of the
// transport OCIArchive or DockerArchive, or else of all. An archive comes without
// signatures, so a rule that asks for one refuses it.
func (c *Checker) ForArchive(transport string) error {
	if c == nil {
		return nil
	}
	r, err := c.rule(transport, "archive", nil)
	if err != nil {
		return err
	}
	for _, q := range r.requires {
		if q.kind == sigstoreSigned {
			return r.refuse("%s asks for a signature, and archives have none: to allow imports, add \"transports\": {%q: {\"\": [{\"type\": %q}]}}", q.path, transport, acceptAnything)
		}
	}
	return nil
}

func (c *Checker) rule(transport, image string, ref reference.Named) (*Rule, error) {
	r := &Rule{checker: c, image: image, ref: ref}
	p, err := load(c.file)
	if err != nil {
		return nil, r.refuse("no image is accepted while its file is wrong: %v", err)
	}
	r.where, r.requires = p.file, p.find(transport, ref)
	for _, q := range r.requires {
		if q.kind == reject {
			return nil, r.refuse("%s rejects it", q.path)
		}
	}
	return r, nil
}

func (r *Rule) refuse(format string, args ...any) error {
	where := ""
	if r.where != "" {
		where = "signature policy " + r.where + ": "
	}
	name := r.image
	if r.ref != nil {
		name = "image " + r.image
	}
	return errkind.Errorf(errkind.BadState, "%s%s: %s%w", failed, name, where, fmt.Errorf(format, args...))
}

// NeedsSignatures reports whether Check will ask for signatures.
func (r *Rule) NeedsSignatures() bool {
	return r != nil && slices.ContainsFunc(r.requires, func(q requirement) bool { return q.kind == sigstoreSigned })
}

// Source finds signatures of an image in one of the places where they can be.
type Source func(context.Context) ([]Signature, error)

// Check accepts an image, whose manifest and the indexes above it have the digests,
// the one that its name leads to first. It asks the sources one by one until all
// requirements are met. Not met, the error of a source that is Unavailable is returned as it
// is: there may be a good signature. All other errors have kind BadState, begin with
// "SignatureValidationFailed: " and say what is missing.
func (r *Rule) Check(ctx context.Context, digests []digest.Digest, sources ...Source) error {
	if !r.NeedsSignatures() {
		return nil
	}
	open := slices.DeleteFunc(slices.Clone(r.requires), func(q requirement) bool { return q.kind != sigstoreSigned })
	reasons := make(map[string][]string) // by requirement
	seen := 0
	var trouble []error
	for _, source := range sources {
		found, err := source(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return err
			}
			trouble = append(trouble, err)
		}
		if seen+len(found) > MaxSignatures {
			found = found[:MaxSignatures-seen]
			trouble = append(trouble, fmt.Errorf("it has more than %d signatures, and no others were looked at", MaxSignatures))
		}
		seen += len(found)
		var still []requirement
		for _, q := range open {
			why, err := r.meets(ctx, q, digests, found)
			if err != nil {
				return r.refuse("%s: %w", q.path, err)
			}
			if why != nil || len(found) == 0 {
				reasons[q.path] = append(reasons[q.path], why...)
				still = append(still, q)
			}
		}
		if open = still; len(open) == 0 {
			return nil
		}
	}
	for _, err := range trouble {
		if errkind.Is(err, errkind.Unavailable) {
			return err
		}
	}
	return r.unmet(open[0], digests[0], seen, reasons[open[0].path], trouble)
}

// unmet says which requirement is not met, and all that is known of it.
func (r *Rule) unmet(q requirement, d digest.Digest, seen int, reasons []string, trouble []error) error {
	var b strings.Builder
	switch {
	case len(reasons) == 0 && len(trouble) > 0:
		b.WriteString("no signature of it was found")
	case len(reasons) == 0:
		b.WriteString("the registry has no signature of it")
	default:
		fmt.Fprintf(&b, "none of %d signatures of it counts: %s", seen, strings.Join(reasons[:min(len(reasons), maxReasons)], "; "))
		if more := len(reasons) - maxReasons; more > 0 {
			fmt.Fprintf(&b, "; and %d more", more)
		}
	}
	for _, err := range trouble {
		fmt.Fprintf(&b, "; not all could be looked at: %v", err)
	}
	return r.refuse("%s (%s) is not met: %s. Sign %s so that it is, or change the policy", q.path, q.kind, b.String(), d)
}

// meets returns nothing when one of the signatures meets the requirement, else why
// each does not.
func (r *Rule) meets(ctx context.Context, q requirement, digests []digest.Digest, found []Signature) (why []string, err error) {
	req := Request{Trust: q.trust}
	for _, s := range found {
		if s.Problem == "" {
			req.Signatures = append(req.Signatures, s)
		}
	}
	var verdicts []Verdict
	if len(req.Signatures) > 0 {
		if verdicts, err = r.checker.run(ctx, req); err != nil {
			return nil, err
		}
	}
	for _, s := range found {
		problem := s.Problem
		if problem == "" {
			problem = q.judge(r.ref, digests, verdicts[0])
			verdicts = verdicts[1:]
		}
		if problem == "" {
			return nil, nil
		}
		why = append(why, s.Origin+": "+shorten(problem))
	}
	return why, nil
}

// judge says why a verified signature is none of this image, "" when it is one.
func (q requirement) judge(ref reference.Named, digests []digest.Digest, v Verdict) string {
	if v.Refused != "" {
		return v.Refused
	}
	isOurs := func(d string) bool { return slices.Contains(digests, digest.Digest(d)) }
	if !slices.ContainsFunc(v.Digests, isOurs) {
		return fmt.Sprintf("it is for %s, not for %s", strings.Join(v.Digests[:min(len(v.Digests), 3)], ", "), digests[0])
	}
	if err := q.identity.matches(ref, v.Name); err != nil {
		return err.Error()
	}
	return ""
}

// run has crid-verify judge the signatures.
func (c *Checker) run(ctx context.Context, req Request) ([]Verdict, error) {
	select {
	case c.running <- struct{}{}:
		defer func() { <-c.running }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, verifyLimit)
	defer cancel()
	in, err := json.Marshal(req)
	if err != nil {
		return nil, err
	}
	stdout, stderr := &bounded{left: maxAnswer}, &bounded{left: 4 << 10}
	cmd := exec.CommandContext(ctx, c.program)
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(in), stdout, stderr
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("signatures could not be verified: %s: %w %s", c.program, err, shorten(stderr.String()))
	}
	var a Answer
	if err := json.Unmarshal(stdout.Bytes(), &a); err != nil {
		return nil, fmt.Errorf("signatures could not be verified: answer of %s: %w", c.program, err)
	}
	if len(a.Verdicts) != len(req.Signatures) {
		return nil, fmt.Errorf("signatures could not be verified: %s gave %d verdicts on %d signatures; is it of the same version as crid?", c.program, len(a.Verdicts), len(req.Signatures))
	}
	for _, v := range a.Verdicts {
		if v.Refused == "" && len(v.Digests) == 0 {
			return nil, errors.New("signatures could not be verified: " + c.program + " gave a verdict without a digest")
		}
	}
	return a.Verdicts, nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	bytes.Buffer
	left int
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left -= n
	_, _ = b.Buffer.Write(p[:n])
	return len(p), nil
}
