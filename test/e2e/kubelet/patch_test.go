package kubelet

import (
	"maps"
	"slices"
	"strings"
)

// merge applies a strategic merge patch as kubelet makes them: a patch of a list whose
// elements have keys says the order of all keys that are to be there.
func merge(old, patch map[string]any) map[string]any {
	merged := maps.Clone(old)
	if merged == nil {
		merged = map[string]any{}
	}
	for field, value := range patch {
		switch value := value.(type) {
		case nil:
			delete(merged, field)
		case map[string]any:
			sub, _ := merged[field].(map[string]any)
			merged[field] = merge(sub, value)
		case []any:
			if order, ok := patch["$setElementOrder/"+field].([]any); ok {
				list, _ := merged[field].([]any)
				merged[field] = mergeList(list, value, order)
			} else if !strings.HasPrefix(field, "$") {
				merged[field] = slices.DeleteFunc(value, func(e any) bool { return matches(e, map[string]any{"$patch": "replace"}) })
			}
		default:
			merged[field] = value
		}
	}
	return merged
}

// mergeList is the elements with these keys, each merged from those of both lists.
func mergeList(old, patch, order []any) []any {
	var merged []any
	for _, key := range order {
		key, _ := key.(map[string]any)
		element := map[string]any{}
		for _, e := range slices.Concat(old, patch) {
			if matches(e, key) {
				element = merge(element, e.(map[string]any))
			}
		}
		merged = append(merged, element)
	}
	return merged
}

func matches(element any, fields map[string]any) bool {
	e, _ := element.(map[string]any)
	for k, v := range fields {
		if e[k] != v {
			return false
		}
	}
	return true
}
