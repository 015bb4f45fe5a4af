//! A persistent set under collision-resistant keys: a Merkle trie, whose hash depends on its elements alone. A version
//! costs what it changes, and two versions are compared at the cost of their difference. It knows nothing of elements.

use std::sync::Arc;

use sallyport_policy::Hasher;

/// The position of an element: a hash in two halves. Elements with one first half are next to each other.
pub(super) type Key = [u128; 2];

/// The bits of a half of a key.
const HALF: u32 = u128::BITS;

/// A set.
#[derive(Debug)]
pub(super) struct Trie<T>(Option<Arc<Node<T>>>);

/// The elements below a prefix of keys; at least one.
#[derive(Debug)]
pub(super) struct Node<T> {
    /// The hash of the elements.
    pub(super) hash: u128,
    /// The key of one of them.
    key: Key,
    len: usize,
    shape: Shape<T>,
}

#[derive(Debug)]
enum Shape<T> {
    /// One element.
    Leaf(T),
    /// Elements that have the bits before `at` in common and differ in that one.
    Branch { at: u32, halves: [Arc<Node<T>>; 2] },
}

/// A bit of a key, from the first.
fn bit(key: Key, at: u32) -> usize {
    let half = key[(at / HALF) as usize];
    usize::from(half >> (HALF - 1 - at % HALF) & 1 == 1)
}

/// The number of leading bits that two keys have in common.
fn common(a: Key, b: Key) -> u32 {
    match (a[0] ^ b[0]).leading_zeros() {
        HALF => HALF + (a[1] ^ b[1]).leading_zeros(),
        bits => bits,
    }
}

impl<T> Node<T> {
    fn leaf(key: Key, element: T) -> Arc<Node<T>> {
        let hasher = Hasher::new("leaf").field(&key[0].to_be_bytes());
        Arc::new(Node {
            hash: hasher.field(&key[1].to_be_bytes()).finish(),
            key,
            len: 1,
            shape: Shape::Leaf(element),
        })
    }

    fn branch(at: u32, halves: [Arc<Node<T>>; 2]) -> Arc<Node<T>> {
        let [left, right] = &halves;
        let hasher = Hasher::new("branch").field(&left.hash.to_be_bytes());
        Arc::new(Node {
            hash: hasher.field(&right.hash.to_be_bytes()).finish(),
            key: left.key,
            len: left.len + right.len,
            shape: Shape::Branch { at, halves },
        })
    }

    /// The number of leading bits that its elements' keys have in common at least.
    fn span(&self) -> u32 {
        match self.shape {
            Shape::Leaf(_) => 2 * HALF,
            Shape::Branch { at, .. } => at,
        }
    }

    /// The element, if it is one.
    pub(super) fn element(&self) -> Option<&T> {
        match &self.shape {
            Shape::Leaf(element) => Some(element),
            Shape::Branch { .. } => None,
        }
    }

    /// Its parts; none of one element.
    pub(super) fn halves(&self) -> &[Arc<Node<T>>] {
        match &self.shape {
            Shape::Leaf(_) => &[],
            Shape::Branch { halves, .. } => halves,
        }
    }
}

/// `node` with `new`, whose keys begin with the first `bits` of `key`, for all that begins with them.
fn replace<T>(
    node: &Arc<Node<T>>,
    key: Key,
    bits: u32,
    new: Option<Arc<Node<T>>>,
) -> Option<Arc<Node<T>>> {
    let common = common(node.key, key).min(node.span());
    if common >= bits {
        return new;
    }
    if let Shape::Branch { at, halves } = &node.shape
        && common == *at
    {
        let side = bit(key, *at);
        let other = &halves[1 - side];
        let Some(half) = replace(&halves[side], key, bits, new) else {
            return Some(other.clone());
        };
        if Arc::ptr_eq(&half, &halves[side]) {
            return Some(node.clone());
        }
        let halves = match side {
            0 => [half, other.clone()],
            _ => [other.clone(), half],
        };
        return Some(Node::branch(*at, halves));
    }
    let Some(new) = new else {
        return Some(node.clone());
    };
    let halves = match bit(key, common) {
        0 => [new, node.clone()],
        _ => [node.clone(), new],
    };
    Some(Node::branch(common, halves))
}

/// The elements that only one of two nodes has, each with whether that is the second.
fn compare<T>(a: &Arc<Node<T>>, b: &Arc<Node<T>>, differs: &mut impl FnMut(&T, bool)) {
    if a.hash == b.hash {
        return;
    }
    let common = common(a.key, b.key).min(a.span()).min(b.span());
    let inner = |node: &Arc<Node<T>>| node.span() == common && !node.halves().is_empty();
    match (inner(a), inner(b)) {
        (true, true) => {
            compare(&a.halves()[0], &b.halves()[0], differs);
            compare(&a.halves()[1], &b.halves()[1], differs);
        }
        (true, false) => {
            let side = bit(b.key, common);
            compare(&a.halves()[side], b, differs);
            each(&a.halves()[1 - side], &mut |element| {
                differs(element, false)
            });
        }
        (false, true) => {
            let side = bit(a.key, common);
            compare(a, &b.halves()[side], differs);
            each(&b.halves()[1 - side], &mut |element| differs(element, true));
        }
        (false, false) => {
            each(a, &mut |element| differs(element, false));
            each(b, &mut |element| differs(element, true));
        }
    }
}

fn each<'a, T>(node: &'a Arc<Node<T>>, visit: &mut impl FnMut(&'a T)) {
    match &node.shape {
        Shape::Leaf(element) => visit(element),
        Shape::Branch { halves, .. } => halves.iter().for_each(|half| each(half, visit)),
    }
}

impl<T> Trie<T> {
    /// The hash of the elements.
    pub(super) fn hash(&self) -> u128 {
        self.0.as_ref().map_or(0, |root| root.hash)
    }

    pub(super) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |root| root.len)
    }

    /// Whether there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// The whole set as a node.
    pub(super) fn root(&self) -> Option<&Arc<Node<T>>> {
        self.0.as_ref()
    }

    /// Adds an element.
    pub(super) fn insert(&mut self, key: Key, element: T) {
        self.put(key, 2 * HALF, Some(Node::leaf(key, element)));
    }

    /// Removes the element of a key.
    pub(super) fn remove(&mut self, key: Key) {
        self.put(key, 2 * HALF, None);
    }

    /// Replaces all elements with the first half of a key by some that have it.
    pub(super) fn graft(&mut self, first: u128, elements: Trie<T>) {
        self.put([first, 0], HALF, elements.0);
    }

    fn put(&mut self, key: Key, bits: u32, new: Option<Arc<Node<T>>>) {
        self.0 = match &self.0 {
            Some(root) => replace(root, key, bits, new),
            None => new,
        };
    }

    /// The element of a key.
    pub(super) fn get(&self, key: Key) -> Option<&T> {
        let mut node = self.0.as_ref()?;
        loop {
            match &node.shape {
                Shape::Leaf(element) => return (node.key == key).then_some(element),
                Shape::Branch { at, halves } => node = &halves[bit(key, *at)],
            }
        }
    }

    /// The elements with this first half of their keys.
    pub(super) fn within(&self, first: u128) -> Trie<T> {
        let mut found = self.0.as_ref();
        while let Some(node) = found {
            match &node.shape {
                Shape::Branch { at, halves } if *at < HALF => {
                    found = Some(&halves[bit([first, 0], *at)]);
                }
                _ => return Trie(Some(node).filter(|node| node.key[0] == first).cloned()),
            }
        }
        Trie(None)
    }

    /// The elements, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let mut stack: Vec<&Arc<Node<T>>> = self.0.iter().collect();
        std::iter::from_fn(move || {
            loop {
                match &stack.pop()?.shape {
                    Shape::Leaf(element) => return Some(element),
                    Shape::Branch { halves, .. } => stack.extend(halves.iter().rev()),
                }
            }
        })
    }

    /// Calls `differs` with every element that only one of the two has, and whether that is the other.
    pub(super) fn compare(&self, other: &Trie<T>, mut differs: impl FnMut(&T, bool)) {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => compare(a, b, &mut differs),
            (Some(a), None) => each(a, &mut |element| differs(element, false)),
            (None, Some(b)) => each(b, &mut |element| differs(element, true)),
            (None, None) => {}
        }
    }
}

impl<T> Clone for Trie<T> {
    fn clone(&self) -> Self {
        Trie(self.0.clone())
    }
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Trie(None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// Keys that are alike in many bits, at both ends of both halves.
    fn any_key() -> impl Strategy<Value = Key> {
        (0..4u128, 0..3u128, 0..2u32)
            .prop_map(|(a, b, high)| [a << (126 * high), b << (126 * high)])
    }

    fn of(keys: &BTreeSet<Key>) -> Trie<Key> {
        let mut trie = Trie::default();
        keys.iter().for_each(|&key| trie.insert(key, key));
        trie
    }

    fn elements(trie: &Trie<Key>) -> BTreeSet<Key> {
        trie.iter().copied().collect()
    }

    proptest! {
        #[test]
        fn agrees_with_a_set_and_depends_on_its_elements_alone(
            edits in vec((any_key(), any::<bool>()), 0..60), other in vec(any_key(), 0..30), first in any_key(),
        ) {
            let (mut trie, mut set) = (Trie::default(), BTreeSet::new());
            for (key, is_put) in edits {
                if is_put {
                    trie.insert(key, key);
                    set.insert(key);
                } else {
                    trie.remove(key);
                    set.remove(&key);
                }
                prop_assert_eq!(trie.get(key).is_some(), is_put);
                prop_assert_eq!(trie.hash(), of(&set).hash());
            }
            prop_assert_eq!(trie.iter().copied().collect::<Vec<_>>(), set.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!((trie.len(), trie.is_empty()), (set.len(), set.is_empty()));
            let other: BTreeSet<Key> = other.into_iter().collect();
            let (mut gone, mut come) = (BTreeSet::new(), BTreeSet::new());
            trie.compare(&of(&other), |&key, is_new| {
                assert!(if is_new { &mut come } else { &mut gone }.insert(key));
            });
            prop_assert_eq!(gone, set.difference(&other).copied().collect());
            prop_assert_eq!(come, other.difference(&set).copied().collect());
            let is_within = |key: &Key| key[0] == first[0];
            prop_assert_eq!(elements(&trie.within(first[0])), set.iter().copied().filter(is_within).collect());
            trie.graft(first[0], of(&other).within(first[0]));
            set.retain(|key| !is_within(key));
            set.extend(other.iter().copied().filter(is_within));
            prop_assert_eq!(trie.hash(), of(&set).hash());
        }
    }
}
