package signature

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// object is a JSON object of the policy file whose fields are taken one after the
// other. What nobody has taken is unknown. Its path is that in the file.
type object struct {
	path   string
	keys   []string // in the file's order
	fields map[string]json.RawMessage
	taken  map[string]bool
}

// readObject takes an object apart. A field that is there twice is an error: readers
// differ in which of the two counts.
func readObject(path string, raw []byte) (*object, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, at(path, "must be an object, {...}")
	}
	o := &object{path: path, fields: make(map[string]json.RawMessage), taken: make(map[string]bool)}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, at(path, "%v", err)
		}
		key, ok := t.(string)
		if !ok {
			return nil, at(path, "has a key that is no text")
		}
		if _, twice := o.fields[key]; twice {
			return nil, at(o.sub(key), "is there twice")
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, at(o.sub(key), "%v", err)
		}
		o.keys = append(o.keys, key)
		o.fields[key] = value
	}
	return o, nil
}

// sub is the path of a field: a plain name after a dot, any other in brackets.
func (o *object) sub(key string) string {
	plain := key != "" && !strings.ContainsFunc(key, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	switch {
	case !plain:
		return o.path + "[" + strconv.Quote(shorten(key)) + "]"
	case o.path == "":
		return key
	}
	return o.path + "." + key
}

// take returns a field, nil when it is not there.
func (o *object) take(key string) json.RawMessage {
	o.taken[key] = true
	return o.fields[key]
}

// text returns a field that is a text; "" when it is not there. An empty one is an
// error: it is a slip wherever the policy has texts.
func (o *object) text(key string) (string, error) {
	raw := o.take(key)
	if raw == nil {
		return "", nil
	}
	var s *string
	if err := json.Unmarshal(raw, &s); err != nil || s == nil || *s == "" {
		return "", at(o.sub(key), "must be a text in quotes, and not empty")
	}
	return *s, nil
}

// texts returns a field that is a list of texts, nil when it is not there.
func (o *object) texts(key string) ([]string, error) {
	raw := o.take(key)
	if raw == nil {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil || len(list) == 0 {
		return nil, at(o.sub(key), "must be a list of texts, and not empty")
	}
	return list, nil
}

// done complains about the first field that nobody has taken.
func (o *object) done() error {
	for _, key := range o.keys {
		if !o.taken[key] {
			return at(o.sub(key), "is not known here")
		}
	}
	return nil
}

// at is an error with the place in the file.
func at(path, format string, args ...any) error {
	if path == "" {
		return fmt.Errorf(format, args...)
	}
	return fmt.Errorf("%s: %w", path, fmt.Errorf(format, args...))
}

// syntax finds what is wrong with a file that is no JSON, and on which line.
func syntax(data []byte) error {
	var any any
	err := json.Unmarshal(data, &any)
	var wrong *json.SyntaxError
	if errors.As(err, &wrong) {
		return fmt.Errorf("line %d: %w", 1+bytes.Count(data[:min(int(wrong.Offset), len(data))], []byte("\n")), wrong)
	}
	return err
}

// shorten makes what others wrote fit for a message.
func shorten(s string) string {
	const limit = 300
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "?")), " ")
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "..."
	}
	return s
}
