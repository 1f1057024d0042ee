export function library() {
  return {}
}
